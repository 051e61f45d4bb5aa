_base_ = ['_resnet20.py']
pruning = dict(criterion=dict(type='Taylor'), normalize_by='none')
