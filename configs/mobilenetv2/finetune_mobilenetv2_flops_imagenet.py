_base_ = './finetune_mobilenetv2_acts_imagenet.py'
pruned = 'work_dirs/prune_mobilenetv2_flops_imagenet/flops_0.65'
load_from = f'{pruned}.pth'
model = dict(structure=f'{pruned}.json')
