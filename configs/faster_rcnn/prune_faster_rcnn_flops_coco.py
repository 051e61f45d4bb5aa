_base_ = './prune_faster_rcnn_acts_coco.py'
pruning = dict(_base_.pruning, normalize_by='flops')
custom_hooks = [pruning]
