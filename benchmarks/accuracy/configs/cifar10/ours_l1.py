_base_ = ['_resnet20.py']
pruning = dict(criterion=dict(type='L1'), normalize_by='none')
