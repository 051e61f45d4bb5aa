_base_ = ['_retinanet.py']
pruning = dict(normalize_by='flops')
