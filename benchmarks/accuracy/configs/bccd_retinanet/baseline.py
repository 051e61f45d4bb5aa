_base_ = ['_retinanet.py']
pruning = None
