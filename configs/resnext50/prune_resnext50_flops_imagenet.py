_base_ = './prune_resnext50_acts_imagenet.py'
pruning = dict(_base_.pruning, normalize_by='flops')
custom_hooks = [pruning]
