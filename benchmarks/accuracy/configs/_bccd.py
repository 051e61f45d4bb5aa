# What the detectors on BCCD share: data, phases, pruning. The 205 training
# pictures train them from random weights, validation pictures are not used.
_base_ = ['mmdet::_base_/default_runtime.py']
custom_imports = dict(imports=['mmgfp', 'precision'])

metainfo = dict(classes=('RBC', 'WBC', 'Platelets'))
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', scale=(320, 240), keep_ratio=True),
    # cells have no upright side
    dict(
        type='RandomFlip',
        prob=[0.25] * 3,
        direction=['horizontal', 'vertical', 'diagonal'],
    ),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(320, 240), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(
        type='PackDetInputs',
        meta_keys=(
            'img_id',
            'img_path',
            'ori_shape',
            'img_shape',
            'scale_factor',
        ),
    ),
]
dataset = dict(
    type='XMLDataset',
    metainfo=metainfo,
    data_prefix=dict(sub_data_root='BCCD'),
)
train_dataloader = dict(
    batch_size=8,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        **dataset,
        ann_file='BCCD/ImageSets/Main/train.txt',
        # one box of BloodImage_00343 is a point; every anchor without another
        # box would be its best match
        filter_cfg=dict(filter_empty_gt=True, min_size=1, bbox_min_size=1),
        pipeline=train_pipeline,
    ),
)
test_dataloader = dict(
    batch_size=8,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        **dataset,
        ann_file='BCCD/ImageSets/Main/test.txt',
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
val_dataloader = None
val_evaluator = None
val_cfg = None
# mAP is the mean over the thresholds, as COCO has it; AP50 is reported, too
test_evaluator = dict(
    type='VOCMetric',
    iou_thrs=[0.5 + 0.05 * i for i in range(10)],
    eval_mode='area',
)
test_cfg = dict()
default_hooks = dict(
    checkpoint=dict(interval=1, max_keep_ckpts=1), logger=dict(interval=25)
)

metric = 'mAP (mean over IoU 0.5 to 0.95)'
input_shape = (256, 320)  # with what is padded
baseline = dict(epochs=60, lr=0.002, warmup=100)
prune = dict(epochs=10, lr=0.0003)
finetune = dict(epochs=60, lr=0.001, warmup=100)
rates = [0.002, 0.001]  # of fine-tuning, tried with the first seed
train_phases = ['prune', 'finetune']
optim_wrapper = dict(
    type='FastestOptimWrapper',
    optimizer=dict(type='AdamW', lr=0.001, weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0),
    clip_grad=dict(max_norm=10),
)

pruning = dict(
    type='mmgfp.FisherPruningHook',
    target=dict(flops=0.5),
    input_shape=input_shape,
    interval=5,
    channels_per_step='auto',
    prune_share=1.0,
    save_at=(),
)
