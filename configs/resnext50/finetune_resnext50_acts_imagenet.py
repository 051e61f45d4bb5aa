# Fine-tunes what prune_resnext50_acts_imagenet.py left in its work dir.
_base_ = 'mmpretrain::resnext/resnext50-32x4d_8xb32_in1k.py'
custom_imports = dict(imports=['mmgfp'], allow_failed_imports=False)

pruned = 'work_dirs/prune_resnext50_acts_imagenet/flops_0.50'
lr = 0.1  # for 8 GPUs x 32 images

load_from = f'{pruned}.pth'
model = dict(
    type='mmgfp.PrunedModel',
    architecture='ImageClassifier',
    structure=f'{pruned}.json',
)
optim_wrapper = dict(optimizer=dict(lr=lr))
