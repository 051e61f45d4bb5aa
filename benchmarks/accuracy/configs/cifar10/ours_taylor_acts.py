# The first order divided by acts: what Fisher's square is worth, compare it
# with fisher_acts.
_base_ = ['ours_taylor.py']
pruning = dict(normalize_by='acts')
