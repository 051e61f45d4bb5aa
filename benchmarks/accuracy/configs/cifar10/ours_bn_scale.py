_base_ = ['_resnet20.py']
pruning = dict(
    type='CriterionPruningHook', criterion='bn_scale', normalize_by='none'
)
