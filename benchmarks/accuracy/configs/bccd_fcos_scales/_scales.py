# FCOS-R18 on BCCD with pictures of several sizes in every phase, otherwise
# like its list.
_base_ = ['../bccd_fcos/ablation_scale_jitter.py']
title = 'FCOS-R18 with GN head on BCCD, pictures of several sizes'
about = """
Like the list before, but every phase trains with pictures of 0.8 to 1.25 times
their size, the baseline's too: 205 pictures of one size are learned by heart.
"""
commands = """
git clone https://github.com/Shenggan/BCCD_Dataset DATA/bccd
python benchmarks/accuracy/run.py bccd_fcos_scales --data-root DATA/bccd \\
    --filter baseline
# on another machine
python benchmarks/accuracy/run.py bccd_fcos_scales --data-root DATA/bccd \\
    --baseline-seed 2 --seeds 2 --lrs 0.002 --jobs 2 \\
    --filter fisher_acts fisher_flops unpruned
python benchmarks/accuracy/run.py bccd_fcos_scales --data-root DATA/bccd \\
    --baseline-seed 2 --seeds 1 --lrs 0.002 --filter fisher_acts
# on a GPU, with the baseline's folder in work_dirs/accuracy/bccd_fcos_scales
python benchmarks/accuracy/run.py bccd_fcos_scales --data-root DATA/bccd \\
    --baseline-seed 2 --seeds 3 4 --lrs 0.002 --filter unpruned --jobs 2
python benchmarks/accuracy/latency.py bccd_fcos_scales --device cpu \\
    --batch 1 8 --rounds 40 --networks 'fisher_*'
python benchmarks/accuracy/latency.py bccd_fcos_scales --device cpu \\
    --batch 1 8 --rounds 40 --networks 'fisher_*' --round-to 8
python benchmarks/accuracy/report.py
"""
