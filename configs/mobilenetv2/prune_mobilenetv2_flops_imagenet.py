_base_ = './prune_mobilenetv2_acts_imagenet.py'
pruning = dict(_base_.pruning, normalize_by='flops')
custom_hooks = [pruning]
