_base_ = ['_torch_pruning.py']
pruning = dict(importance=dict(type='GroupMagnitudeImportance', p=1))
