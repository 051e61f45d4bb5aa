# Pruning and searches of widths on a detector of blood cells.
_base_ = ['../bccd_retinanet/_retinanet.py', '_bccd.py']
title = 'RetinaNet on BCCD'
about = """
A ResNet-18 of half and an FPN and head of a quarter of the usual channels,
trained from random weights on the 205 pictures of the training split, in
320x240 pixels, for 24 epochs of 26 iterations; tested on the 72 of the test
split. Channels are pruned to half of the flops during six epochs and
fine-tuned for twelve. [Longer schedules](bccd_retinanet.md). ITPruner
has no row: it leaves 11 inputs to a strided convolution, with which oneDNN
aborts on AVX-512 ([the fault](../faq.md)).
"""
commands = """
git clone https://github.com/Shenggan/BCCD_Dataset DATA/bccd
python benchmarks/accuracy/methods.py bccd --data-root DATA/bccd
python benchmarks/accuracy/methods_report.py
"""
metrics = {'pascal_voc/mAP': 'mAP (mean over IoU 0.5 to 0.95)'}
decimals = 3
baseline = dict(epochs=24)
prune = dict(epochs=6)
finetune = dict(epochs=12, lr=0.002)
pruning = None
