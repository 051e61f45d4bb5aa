_base_ = ['_fcos.py']
pruning = dict(normalize_by='flops')
