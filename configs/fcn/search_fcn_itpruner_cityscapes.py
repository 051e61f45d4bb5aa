# Solves for the widths of FCN-R18 (ITPruner), at half its flops.
_base_ = './prune_fcn_acts_cityscapes.py'
searching = dict(
    type='mmgfp.SearchHook',
    search=dict(type='ITPruner'),
    target=dict(flops=0.5),
    finetune=_base_.pruning.finetune,
    round_to=8,
)
custom_hooks = [searching]
