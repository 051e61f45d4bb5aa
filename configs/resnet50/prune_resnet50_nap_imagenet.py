# Prunes ResNet-50 to half its flops by K-FAC, as NAP ranks channels.
_base_ = 'mmpretrain::resnet/resnet50_8xb32_in1k.py'
custom_imports = dict(imports=['mmgfp'], allow_failed_imports=False)

target = 0.5  # remaining share of the multiply-accumulates
interval = 5005  # an epoch; a calibration pass and a step after each
lr = 0.004  # for 8 GPUs x 32 images, as is the next one
finetune_lr = 0.1

# the trained classifier, with which pruning starts
# https://mmassets.onedl.ai/mmclassification/v0/resnet/resnet50_8xb32_in1k_20210831-ea4938fc.pth
load_from = 'checkpoints/resnet50_8xb32_in1k_20210831-ea4938fc.pth'
optim_wrapper = dict(optimizer=dict(lr=lr))

pruning = dict(
    type='mmgfp.PruningHook',
    target=dict(flops=target),
    criterion=dict(type='KFAC', batches=100),
    interval=interval,
    channels_per_step='auto',
    prune_share=0.1,
    normalize_by='none',
    finetune=dict(optim_wrapper=dict(optimizer=dict(lr=finetune_lr))),
)
custom_hooks = [pruning]
