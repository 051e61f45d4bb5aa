# Pictures of 0.8 to 1.25 times the size while pruning and fine-tuning, for 205
# of one size are learned by heart; bccd_fcos_scales has a baseline to match.
_base_ = ['fisher_acts.py']
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(
        type='RandomResize',
        scale=(320, 240),
        ratio_range=(0.8, 1.25),
        keep_ratio=True,
    ),
    dict(
        type='RandomFlip',
        prob=[0.25] * 3,
        direction=['horizontal', 'vertical', 'diagonal'],
    ),
    dict(type='PackDetInputs'),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
