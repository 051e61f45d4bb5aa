_base_ = ['_fcos.py']
pruning = None
train_phases = ['baseline']
