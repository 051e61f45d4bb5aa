# Learns the widths of FCN-R18 by gradients (DCSS), at half its flops.
_base_ = './prune_fcn_acts_cityscapes.py'
searching = dict(
    type='mmgfp.SearchHook',
    search=dict(type='DCSS', order=dict(type='Fisher')),
    target=dict(flops=0.5),
    finetune=_base_.pruning.finetune,
    interval=500,  # steps in which Fisher information is summed first
    search_share=0.25,  # 20000 of 80000 iterations, each step of two batches
    round_to=8,
)
custom_hooks = [searching]
