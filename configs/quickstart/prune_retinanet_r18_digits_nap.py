# Prunes what retinanet_r18_digits.py trained to half its flops by K-FAC.
_base_ = './prune_retinanet_r18_digits.py'

pruning = _base_.pruning
pruning.update(
    criterion=dict(type='KFAC', batches=16),
    interval=40,  # a calibration pass each
    normalize_by='none',
)
custom_hooks = [pruning]
