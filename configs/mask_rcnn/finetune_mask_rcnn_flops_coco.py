_base_ = './finetune_mask_rcnn_acts_coco.py'
pruned = 'work_dirs/prune_mask_rcnn_flops_coco/flops_0.50'
load_from = f'{pruned}.pth'
model = dict(structure=f'{pruned}.json')
