# Twice as long after the same channels.
_base_ = ['fisher_acts.py']
finetune = dict(epochs=120)
