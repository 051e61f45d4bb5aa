# Learns the widths of fcos_r18_digits.py by gradients, at half its flops.
_base_ = './prune_fcos_r18_digits.py'

max_epochs = 4  # widths are learnt from half of the data
train_cfg = dict(max_epochs=max_epochs, val_interval=max_epochs)

searching = dict(
    type='mmgfp.SearchHook',
    search=dict(type='DCSS'),
    target=_base_.pruning.target,
    round_to=_base_.pruning.round_to,
    finetune=_base_.pruning.finetune,
)
custom_hooks = [searching]
