# How the detectors of the quickstart are pruned and fine-tuned.
custom_imports = dict(imports=['mmgfp'], allow_failed_imports=False)

finetune_epochs = 1
pruning = dict(
    type='mmgfp.PruningHook',
    criterion=dict(type='Fisher'),
    target=dict(flops=0.5),
    # the paper's pace, one channel in ten iterations, is for longer training
    interval=5,
    channels_per_step='auto',
    prune_share=1.0,
    normalize_by='acts',
    # runtimes compute in blocks of channels: other widths save flops, not time
    round_to='auto',
    finetune=dict(
        train_cfg=dict(
            max_epochs=finetune_epochs, val_interval=finetune_epochs
        ),
        optim_wrapper=dict(optimizer=dict(lr=1e-3)),
        param_scheduler=[
            dict(
                type='LinearLR',
                start_factor=0.1,
                by_epoch=False,
                begin=0,
                end=50,
            ),
            dict(
                type='CosineAnnealingLR',
                by_epoch=True,
                begin=0,
                end=finetune_epochs,
                T_max=finetune_epochs,
                eta_min_ratio=0.01,
                convert_to_iter_based=True,
            ),
        ],
    ),
)
custom_hooks = [pruning]
