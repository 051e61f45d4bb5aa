# Prunes the weights of what fcos_r18_digits.py trained to a fifth.
_base_ = ['./fcos_r18_digits.py', '../_base_/digits_pruning.py']

load_from = 'work_dirs/quickstart/fcos/baseline/epoch_4.pth'

max_epochs = 1
train_cfg = dict(max_epochs=max_epochs, val_interval=max_epochs)
optim_wrapper = dict(optimizer=dict(lr=3e-4))
param_scheduler = []

sparsity = dict(
    type='mmgfp.SparsityHook',
    density=0.2,
    criterion=dict(type='KFAC', batches=16),
    steps=4,
    interval=60,
    after_target='train',
    finetune=_base_.pruning.finetune,
)
custom_hooks = [sparsity]
