_base_ = ['_resnet56.py']
pruning = dict(normalize_by='flops')
