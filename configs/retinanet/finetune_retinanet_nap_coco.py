_base_ = './finetune_retinanet_acts_coco.py'
pruned = 'work_dirs/prune_retinanet_nap_coco/flops_0.50'
load_from = f'{pruned}.pth'
model = dict(structure=f'{pruned}.json')
