# Prunes FCN-R18 to half its flops; scores are per activation saved.
_base_ = 'mmseg::fcn/fcn_r18-d8_4xb2-80k_cityscapes-512x1024.py'
custom_imports = dict(imports=['mmgfp'], allow_failed_imports=False)

target = 0.5  # remaining share of the multiply-accumulates
interval = 10  # iterations until the next channel goes
lr = 0.002  # for 4 GPUs x 2 images, as is the next one
finetune_lr = 0.01

# the trained segmentor, with which pruning starts
# https://mmassets.onedl.ai/mmsegmentation/v0.5/fcn/fcn_r18-d8_512x1024_80k_cityscapes/fcn_r18-d8_512x1024_80k_cityscapes_20201225_021327-6c50f8b4.pth
load_from = (
    'checkpoints/'
    'fcn_r18-d8_512x1024_80k_cityscapes_20201225_021327-6c50f8b4.pth'
)
model = dict(pretrained=None)
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
