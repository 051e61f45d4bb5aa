# Prunes the weights of what retinanet_r18_digits.py trained to a fifth.
_base_ = './prune_retinanet_r18_digits.py'

sparsity = dict(
    type='mmgfp.SparsityHook',
    density=0.2,
    criterion=dict(type='KFAC', batches=16),
    steps=4,
    interval=60,
    finetune=_base_.pruning.finetune,
)
custom_hooks = [sparsity]
