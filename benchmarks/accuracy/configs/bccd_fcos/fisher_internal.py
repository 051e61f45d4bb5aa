# Only channels that one layer makes and one reads (the paper's "-I").
_base_ = ['_fcos.py']
pruning = dict(scope='internal')
