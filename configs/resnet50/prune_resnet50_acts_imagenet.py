# Prunes ResNet-50 to half its flops; scores are per activation saved.
_base_ = 'mmpretrain::resnet/resnet50_8xb32_in1k.py'
custom_imports = dict(imports=['mmgfp'], allow_failed_imports=False)

target = 0.5  # remaining share of the multiply-accumulates
interval = 25  # iterations until the next channel goes
lr = 0.004  # for 8 GPUs x 32 images, as is the next one
finetune_lr = 0.1

# the trained classifier, with which pruning starts
# https://mmassets.onedl.ai/mmclassification/v0/resnet/resnet50_8xb32_in1k_20210831-ea4938fc.pth
load_from = 'checkpoints/resnet50_8xb32_in1k_20210831-ea4938fc.pth'
optim_wrapper = dict(optimizer=dict(lr=lr))

pruning = dict(
    type='mmgfp.PruningHook',
    criterion=dict(type='Fisher'),
    target=dict(flops=target),
    interval=interval,
    normalize_by='acts',
    finetune=dict(optim_wrapper=dict(optimizer=dict(lr=finetune_lr))),
)
custom_hooks = [pruning]
