_base_ = ['_retinanet.py']
pruning = None
train_phases = ['baseline']
