# Prunes RegNetX-3.2GF to half its flops; scores are per activation saved.
_base_ = 'mmpretrain::regnet/regnetx-3.2gf_8xb64_in1k.py'
custom_imports = dict(imports=['mmgfp'], allow_failed_imports=False)

target = 0.5  # remaining share of the multiply-accumulates
interval = 25  # iterations until the next channel goes
lr = 0.004  # for 8 GPUs x 32 images, as is the next one
finetune_lr = 0.1

# the trained classifier, with which pruning starts
# https://mmassets.onedl.ai/mmclassification/v0/regnet/regnetx-3.2gf_8xb64_in1k_20211213-1fdd82ae.pth
load_from = 'checkpoints/regnetx-3.2gf_8xb64_in1k_20211213-1fdd82ae.pth'
train_dataloader = dict(batch_size=32)
auto_scale_lr = dict(base_batch_size=256)
optim_wrapper = dict(optimizer=dict(lr=lr))

pruning = dict(
    type='mmgfp.PruningHook',
    criterion=dict(type='Fisher'),
    target=dict(flops=target),
    interval=interval,
    normalize_by='acts',
    finetune=dict(optim_wrapper=dict(optimizer=dict(lr=finetune_lr))),
)
precise_bn = _base_.custom_hooks
custom_hooks = [*precise_bn, pruning]
