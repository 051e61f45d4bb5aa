_base_ = ['_resnet20.py']
pruning = dict(normalize_by='flops')
