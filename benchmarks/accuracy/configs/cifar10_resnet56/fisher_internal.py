# Only channels that one layer makes and one reads (the paper's "-I").
_base_ = ['_resnet56.py']
pruning = dict(scope='internal')
