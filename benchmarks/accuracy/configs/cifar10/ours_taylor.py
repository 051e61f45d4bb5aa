_base_ = ['_resnet20.py']
pruning = dict(
    type='CriterionPruningHook', criterion='taylor', normalize_by='none'
)
