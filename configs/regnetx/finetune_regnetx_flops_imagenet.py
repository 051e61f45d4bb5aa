_base_ = './finetune_regnetx_acts_imagenet.py'
pruned = 'work_dirs/prune_regnetx_flops_imagenet/flops_0.50'
load_from = f'{pruned}.pth'
model = dict(structure=f'{pruned}.json')
