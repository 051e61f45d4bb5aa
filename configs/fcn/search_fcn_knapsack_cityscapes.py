# Chooses the widths of FCN-R18 by a knapsack, at half its flops.
_base_ = './prune_fcn_acts_cityscapes.py'
searching = dict(
    type='mmgfp.SearchHook',
    search=dict(type='Knapsack', criterion=dict(type='Fisher')),
    target=dict(flops=0.5),
    finetune=_base_.pruning.finetune,
    interval=500,  # steps of training before each step of the search
    steps=5,
    round_to=8,
)
custom_hooks = [searching]
