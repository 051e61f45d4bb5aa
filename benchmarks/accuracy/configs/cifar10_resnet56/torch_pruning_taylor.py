_base_ = ['_torch_pruning.py']
pruning = dict(importance=dict(type='GroupTaylorImportance'))
