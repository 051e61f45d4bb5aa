# The square of a batch's gradient instead of the sum of squares of images'.
_base_ = ['fisher_acts.py']
pruning = dict(criterion=dict(type='BatchFisher'))
