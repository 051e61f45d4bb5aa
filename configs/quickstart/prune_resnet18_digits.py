# Prunes what resnet18_digits.py trained to half its flops.
_base_ = './resnet18_digits.py'
custom_imports = dict(imports=['mmgfp'], allow_failed_imports=False)

load_from = 'work_dirs/resnet18_digits/epoch_12.pth'

max_epochs = 4
train_cfg = dict(max_epochs=max_epochs, val_interval=max_epochs)
optim_wrapper = dict(optimizer=dict(lr=5e-4))
param_scheduler = []

pruning = dict(
    type='mmgfp.PruningHook',
    criterion=dict(type='Fisher'),
    target=dict(flops=0.5),
    interval=5,
    channels_per_step='auto',
    prune_share=1.0,
    normalize_by='acts',
    finetune=dict(
        train_cfg=dict(max_epochs=8),
        optim_wrapper=dict(optimizer=dict(lr=1e-3)),
        param_scheduler=[
            dict(
                type='CosineAnnealingLR',
                by_epoch=True,
                T_max=8,
                eta_min_ratio=0.01,
                convert_to_iter_based=True,
            )
        ],
    ),
)
custom_hooks = [pruning]
