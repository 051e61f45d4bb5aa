_base_ = './finetune_resnet50_acts_imagenet.py'
pruned = 'work_dirs/prune_resnet50_nap_imagenet/flops_0.50'
load_from = f'{pruned}.pth'
model = dict(structure=f'{pruned}.json')
