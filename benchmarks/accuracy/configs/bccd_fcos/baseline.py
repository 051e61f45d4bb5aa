_base_ = ['_fcos.py']
pruning = None
