# RetinaNet-R18 on BCCD: what its experiments share.
_base_ = [
    '../../../../configs/_base_/retinanet_r18.py',
    '../_bccd.py',
]
title = 'RetinaNet-R18 on BCCD'
about = """
A ResNet-18 of half and an FPN and head of a quarter of the usual channels,
trained from random weights on the 205 pictures of the training split, in
320x240 pixels; tested on the 72 of the test split.
"""
commands = """
git clone https://github.com/Shenggan/BCCD_Dataset DATA/bccd
python benchmarks/accuracy/run.py bccd_retinanet --data-root DATA/bccd \\
    --seeds 0 1 --jobs 2 --filter 'fisher_*' unpruned
# on another machine
python benchmarks/accuracy/run.py bccd_retinanet --data-root DATA/bccd \\
    --seeds 2 --baseline-seed 2 --lrs 0.002 --filter fisher_acts
python benchmarks/accuracy/latency.py bccd_retinanet --device cpu \\
    --batch 1 8 --rounds 40 --networks 'fisher_*'
python benchmarks/accuracy/latency.py bccd_retinanet --device cpu \\
    --batch 1 8 --rounds 40 --networks 'fisher_*' --round-to 8
python benchmarks/accuracy/report.py
"""

model = dict(
    bbox_head=dict(
        num_classes=3,
        # platelets are 20 pixels high, red cells 50, white ones 100
        anchor_generator=dict(octave_base_scale=3),
    ),
)
