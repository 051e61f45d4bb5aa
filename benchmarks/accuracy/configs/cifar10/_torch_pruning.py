_base_ = ['_resnet20.py']
custom_imports = {{_base_.peer_imports}}
pruning = {{_base_.torch_pruning}}
