_base_ = ['_resnet20.py']
pruning = dict(criterion=dict(type='Random'), normalize_by='none')
