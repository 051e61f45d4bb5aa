_base_ = ['fisher_acts.py']
optim_wrapper = dict(optimizer=dict(weight_decay=5e-4))
