# Nothing is removed: what fine-tuning alone gives.
_base_ = ['baseline.py']
baseline = dict(lr=0.03)
