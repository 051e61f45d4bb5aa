# Prunes the weights of ResNet-50 to 15 % (NAP: 6.7x), by its curvature.
_base_ = 'mmpretrain::resnet/resnet50_8xb32_in1k.py'
custom_imports = dict(imports=['mmgfp'], allow_failed_imports=False)

# steps, batches and the schedule are ours: the paper's text is not public
density = 0.15  # share of the weights that stays
steps = 4
interval = 5004  # optimiser steps between two of them: one epoch
lr = 0.004  # for 8 GPUs x 32 images, as is the next one
finetune_lr = 0.01

# the trained classifier, with which pruning starts
# https://mmassets.onedl.ai/mmclassification/v0/resnet/resnet50_8xb32_in1k_20210831-ea4938fc.pth
load_from = 'checkpoints/resnet50_8xb32_in1k_20210831-ea4938fc.pth'
train_cfg = dict(max_epochs=steps)
optim_wrapper = dict(optimizer=dict(lr=lr))
param_scheduler = []

pruning = dict(
    type='mmgfp.SparsityHook',
    density=density,
    criterion=dict(type='KFAC'),
    steps=steps,
    interval=interval,
    finetune=dict(optim_wrapper=dict(optimizer=dict(lr=finetune_lr))),
)
custom_hooks = [pruning]
