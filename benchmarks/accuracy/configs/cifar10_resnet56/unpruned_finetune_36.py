_base_ = ['unpruned.py']
finetune = dict(epochs=36, lr=0.1)
