# Only channels that one layer makes and one reads (the paper's "-I").
_base_ = ['_scales.py']
pruning = dict(scope='internal')
