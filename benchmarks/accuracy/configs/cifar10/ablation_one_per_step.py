# One choice per pruning step, as the paper has it, instead of several; so
# often that the target is met about as late.
_base_ = ['_resnet20.py']
pruning = dict(
    _delete_=True,
    type='mmgfp.FisherPruningHook',
    target=dict(flops=0.5),
    input_shape={{_base_.input_shape}},
    interval=7,
    channels_per_step=1,
    save_at=(),
)
