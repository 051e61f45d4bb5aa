# FCOS-R18 with GN in its head on BCCD: what its experiments share.
_base_ = ['../../../../configs/_base_/fcos_r18.py', '../_bccd.py']
title = 'FCOS-R18 with GN head on BCCD'
about = """
A ResNet-18 of half and an FPN and head of a quarter of the usual channels,
trained from random weights on the 205 pictures of the training split, in
320x240 pixels; tested on the 72 of the test split.
"""
commands = """
git clone https://github.com/Shenggan/BCCD_Dataset DATA/bccd
python benchmarks/accuracy/run.py bccd_fcos --data-root DATA/bccd \\
    --seeds 0 1 --jobs 2 --filter 'fisher_*'
python benchmarks/accuracy/run.py bccd_fcos --data-root DATA/bccd \\
    --seeds 0 1 --jobs 2 --lrs 0.002 --filter unpruned
python benchmarks/accuracy/run.py bccd_fcos --data-root DATA/bccd \\
    --seeds 0 --jobs 2 --lrs 0.002 \\
    --filter ablation_finetune_120 'ablation_min*' 'ablation_prune*'
# on another machine
python benchmarks/accuracy/run.py bccd_fcos --data-root DATA/bccd \\
    --seeds 2 --baseline-seed 2 --lrs 0.002 \\
    --filter fisher_acts unpruned ablation_finetune_30 'ablation_scale*'
python benchmarks/accuracy/diagnose.py bccd_fcos --data-root DATA/bccd \\
    --networks '[!a]*seed2*' 'ablation_finetune_30*'
python benchmarks/accuracy/latency.py bccd_fcos --device cpu \\
    --batch 1 8 --rounds 40 --networks 'fisher_*'
python benchmarks/accuracy/latency.py bccd_fcos --device cpu \\
    --batch 1 8 --rounds 40 --networks 'fisher_*' --round-to 8
python benchmarks/accuracy/report.py
"""

model = dict(
    bbox_head=dict(
        num_classes=3,
        # platelets and most red cells belong to the first two levels
        regress_ranges=((-1, 32), (32, 64), (64, 128), (128, 256), (256, 1e8)),
    ),
)
