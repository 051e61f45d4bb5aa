_base_ = ['_resnet20.py']
pruning = None
