_base_ = ['_resnet20.py']
pruning = dict(
    type='CriterionPruningHook', criterion='l1', normalize_by='none'
)
