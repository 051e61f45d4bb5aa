# What the pictures of other sizes give to the baseline.
_base_ = ['ablation_scale_jitter.py']
pruning = None
