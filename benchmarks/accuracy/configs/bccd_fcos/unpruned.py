# Nothing is removed: what fine-tuning alone gives.
_base_ = ['baseline.py']
