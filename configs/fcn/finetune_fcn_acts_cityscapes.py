# Fine-tunes what prune_fcn_acts_cityscapes.py left in its work dir.
_base_ = 'mmseg::fcn/fcn_r18-d8_4xb2-80k_cityscapes-512x1024.py'
custom_imports = dict(imports=['mmgfp'], allow_failed_imports=False)

pruned = 'work_dirs/prune_fcn_acts_cityscapes/flops_0.50'
lr = 0.01  # for 4 GPUs x 2 images

load_from = f'{pruned}.pth'
model = dict(
    type='mmgfp.PrunedModel',
    architecture='EncoderDecoder',
    structure=f'{pruned}.json',
    pretrained=None,
)
optim_wrapper = dict(optimizer=dict(lr=lr))
