_base_ = './prune_fcn_acts_cityscapes.py'
pruning = dict(_base_.pruning, normalize_by='flops')
custom_hooks = [pruning]
