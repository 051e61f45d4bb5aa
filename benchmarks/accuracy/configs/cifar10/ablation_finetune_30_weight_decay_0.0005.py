# Three times as long and with more regularisation.
_base_ = ['ablation_weight_decay_0.0005.py']
finetune = dict(epochs=30)
