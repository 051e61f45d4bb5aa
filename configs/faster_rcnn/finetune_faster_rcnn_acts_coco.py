# Fine-tunes what prune_faster_rcnn_acts_coco.py left in its work dir.
_base_ = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'
custom_imports = dict(imports=['mmgfp'], allow_failed_imports=False)

pruned = 'work_dirs/prune_faster_rcnn_acts_coco/flops_0.50'
lr = 0.01  # for 8 GPUs x 2 images

load_from = f'{pruned}.pth'
model = dict(
    type='mmgfp.PrunedModel',
    architecture='FasterRCNN',
    structure=f'{pruned}.json',
    backbone=dict(frozen_stages=-1, norm_eval=True, init_cfg=None),
)
optim_wrapper = dict(optimizer=dict(lr=lr))
