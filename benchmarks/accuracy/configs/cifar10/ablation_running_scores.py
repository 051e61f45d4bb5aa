# Scores are not reset by a pruning step, but fade.
_base_ = ['fisher_acts.py']
pruning = dict(type='CriterionPruningHook', criterion='running_fisher')
