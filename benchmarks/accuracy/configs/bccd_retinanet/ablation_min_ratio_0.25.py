# A quarter of every group stays.
_base_ = ['_retinanet.py']
pruning = dict(min_ratio=0.25)
