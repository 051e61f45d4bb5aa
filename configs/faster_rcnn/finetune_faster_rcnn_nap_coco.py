_base_ = './finetune_faster_rcnn_acts_coco.py'
pruned = 'work_dirs/prune_faster_rcnn_nap_coco/flops_0.50'
load_from = f'{pruned}.pth'
model = dict(structure=f'{pruned}.json')
