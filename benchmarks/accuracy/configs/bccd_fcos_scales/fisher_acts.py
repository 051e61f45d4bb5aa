_base_ = ['_scales.py']
pruning = dict(normalize_by='acts')
