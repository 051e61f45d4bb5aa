# Prunes FCOS-R50 to half its flops by K-FAC, as NAP ranks channels.
_base_ = './prune_fcos_acts_coco.py'
pruning = dict(
    _base_.pruning,
    criterion=dict(type='KFAC', batches=100),
    interval=7330,  # an epoch of COCO, then a calibration pass and a step
    channels_per_step='auto',
    normalize_by='none',
)
custom_hooks = [pruning]
