_base_ = ['_resnet20.py']
pruning = dict(criterion=dict(type='BNScale'), normalize_by='none')
