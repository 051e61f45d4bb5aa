# Prunes ResNet-50 to half its flops by K-FAC, as NAP ranks channels.
_base_ = './prune_resnet50_acts_imagenet.py'
pruning = dict(
    _base_.pruning,
    criterion=dict(type='KFAC', batches=100),
    interval=5005,  # an epoch of ImageNet, then a calibration pass and a step
    channels_per_step='auto',
    prune_share=0.1,
    normalize_by='none',
)
custom_hooks = [pruning]
