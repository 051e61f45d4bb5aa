_base_ = './finetune_fcn_acts_cityscapes.py'
pruned = 'work_dirs/prune_fcn_flops_cityscapes/flops_0.50'
load_from = f'{pruned}.pth'
model = dict(structure=f'{pruned}.json')
