# Pruning on a detector of blood cells without anchors.
_base_ = ['../bccd_fcos/_fcos.py', '_bccd.py']
title = 'FCOS on BCCD'
about = """
A ResNet-18 of half and an FPN and head of a quarter of the usual channels,
trained from random weights on the 205 pictures of the training split, in
320x240 pixels, for 24 epochs of 26 iterations; tested on the 72 of the test
split. Channels are pruned to half of the flops during six epochs and
fine-tuned for twelve. [Longer schedules](bccd_fcos.md).
"""
commands = """
git clone https://github.com/Shenggan/BCCD_Dataset DATA/bccd
python benchmarks/accuracy/methods.py bccd_fcos --data-root DATA/bccd \\
    --filter 'fisher*' 'nap_[!p]*'
python benchmarks/accuracy/methods_report.py
"""
metrics = {'pascal_voc/mAP': 'mAP (mean over IoU 0.5 to 0.95)'}
decimals = 3
baseline = dict(epochs=24)
prune = dict(epochs=6)
finetune = dict(epochs=12, lr=0.002)
pruning = None
