_base_ = ['_scales.py']
pruning = None
train_phases = ['baseline']
