_base_ = ['_resnet20.py']
pruning = None
train_phases = ['baseline']
