# Half as long, for the control lost by training for longer.
_base_ = ['fisher_acts.py']
finetune = dict(epochs=30)
