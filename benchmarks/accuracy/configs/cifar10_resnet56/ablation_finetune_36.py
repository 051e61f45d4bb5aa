_base_ = ['fisher_acts.py']
finetune = dict(epochs=36, lr=0.1)
