_base_ = './finetune_resnext50_acts_imagenet.py'
pruned = 'work_dirs/prune_resnext50_flops_imagenet/flops_0.50'
load_from = f'{pruned}.pth'
model = dict(structure=f'{pruned}.json')
