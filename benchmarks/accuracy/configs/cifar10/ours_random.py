_base_ = ['_resnet20.py']
pruning = dict(
    type='CriterionPruningHook', criterion='random', normalize_by='none'
)
