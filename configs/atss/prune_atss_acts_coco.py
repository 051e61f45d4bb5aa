# Prunes ATSS-R50 to half its flops; scores are per activation saved.
_base_ = 'mmdet::atss/atss_r50_fpn_1x_coco.py'
custom_imports = dict(imports=['mmgfp'], allow_failed_imports=False)

target = 0.5  # remaining share of the multiply-accumulates
interval = 10  # iterations until the next channel goes
lr = 0.002  # for 8 GPUs x 2 images, as is the next one
finetune_lr = 0.01

# the trained detector, with which pruning starts
# (the paper's has no GN in its head: bbox_head=dict(norm_cfg=None))
# https://download.openmmlab.com/mmdetection/v2.0/atss/atss_r50_fpn_1x_coco/atss_r50_fpn_1x_coco_20200209-985f7bd0.pth
load_from = 'checkpoints/atss_r50_fpn_1x_coco_20200209-985f7bd0.pth'
model = dict(backbone=dict(frozen_stages=-1, norm_eval=True, init_cfg=None))
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
