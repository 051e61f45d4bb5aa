# RetinaNet-R18 on BCCD: what its experiments share.
_base_ = [
    '../../../../configs/_base_/retinanet_r18.py',
    '../_bccd.py',
]
title = 'RetinaNet-R18 on BCCD, half of the flops'
commands = """
unzip -q bccd.zip -d DATA/bccd
python benchmarks/accuracy/run.py bccd_retinanet --data-root DATA/bccd \\
    --seeds 0 1 --lrs 0.002 0.001 --jobs 2
python benchmarks/accuracy/latency.py bccd_retinanet --batch 1 8
python benchmarks/accuracy/report.py
"""

model = dict(
    bbox_head=dict(
        num_classes=3,
        # platelets are 20 pixels high, red cells 50, white ones 100
        anchor_generator=dict(octave_base_scale=3),
    ),
)
