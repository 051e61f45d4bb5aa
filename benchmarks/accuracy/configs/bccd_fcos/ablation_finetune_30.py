# Half as long: with all channels, more training loses what it had.
_base_ = ['fisher_acts.py']
finetune = dict(epochs=30)
