_base_ = './prune_regnetx_acts_imagenet.py'
pruning = dict(_base_.pruning, normalize_by='flops')
custom_hooks = [*_base_.precise_bn, pruning]
