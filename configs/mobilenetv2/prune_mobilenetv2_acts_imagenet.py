# Prunes MobileNetV2 to 65 % of its flops; scores are per activation saved.
_base_ = 'mmpretrain::mobilenet_v2/mobilenet-v2_8xb32_in1k.py'
custom_imports = dict(imports=['mmgfp'], allow_failed_imports=False)

target = 0.65  # remaining share of the multiply-accumulates
interval = 25  # iterations until the next channel goes
lr = 0.045 * 0.1125  # for 8 GPUs x 32 images, as is the next one
finetune_lr = 0.045

# the trained classifier, with which pruning starts
# https://mmassets.onedl.ai/mmclassification/v0/mobilenet_v2/mobilenet_v2_batch256_imagenet_20200708-3b2dc3af.pth
load_from = 'checkpoints/mobilenet_v2_batch256_imagenet_20200708-3b2dc3af.pth'
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
