# Fine-tunes what prune_regnetx_acts_imagenet.py left in its work dir.
_base_ = 'mmpretrain::regnet/regnetx-3.2gf_8xb64_in1k.py'
custom_imports = dict(imports=['mmgfp'], allow_failed_imports=False)

pruned = 'work_dirs/prune_regnetx_acts_imagenet/flops_0.50'
lr = 0.1  # for 8 GPUs x 32 images

load_from = f'{pruned}.pth'
model = dict(
    type='mmgfp.PrunedModel',
    architecture='ImageClassifier',
    structure=f'{pruned}.json',
)
train_dataloader = dict(batch_size=32)
auto_scale_lr = dict(base_batch_size=256)
optim_wrapper = dict(optimizer=dict(lr=lr))
