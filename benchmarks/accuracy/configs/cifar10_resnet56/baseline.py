_base_ = ['_resnet56.py']
pruning = None
train_phases = ['baseline']
