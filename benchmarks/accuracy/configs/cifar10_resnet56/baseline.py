# ResNet-56, otherwise like ResNet-20's list.
_base_ = ['../cifar10/baseline.py']
title = 'ResNet-56 on CIFAR-10, half of the flops'
commands = """
pip install --no-deps -r benchmarks/accuracy/requirements.txt
python benchmarks/accuracy/run.py cifar10_resnet56 --data-root DATA/cifar10 \\
    --weights cifar10_resnet56.th --lrs 0.03 --jobs 2
python benchmarks/accuracy/latency.py cifar10_resnet56
python benchmarks/accuracy/report.py
"""
model = dict(backbone=dict(depth=56))
