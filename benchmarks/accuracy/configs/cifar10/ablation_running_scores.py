# Scores are not reset by a pruning step, but fade.
_base_ = ['fisher_acts.py']
pruning = dict(criterion=dict(type='Fisher', decay=0.9))
