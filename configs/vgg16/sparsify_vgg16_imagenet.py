# Prunes the weights of VGG-16 to 4 % (NAP: 25x), by its curvature.
_base_ = 'mmpretrain::vgg/vgg16_8xb32_in1k.py'
custom_imports = dict(imports=['mmgfp'], allow_failed_imports=False)

# steps, batches and the schedule are ours: the paper's text is not public
density = 0.04  # share of the weights that stays
steps = 4
interval = 5004  # optimiser steps between two of them: one epoch
lr = 0.0004  # for 8 GPUs x 32 images, as is the next one
finetune_lr = 0.001

# the trained classifier, with which pruning starts
# https://mmassets.onedl.ai/mmclassification/v0/vgg/vgg16_batch256_imagenet_20210208-db26f1a5.pth
load_from = 'checkpoints/vgg16_batch256_imagenet_20210208-db26f1a5.pth'
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
