_base_ = ['torch_pruning_random.py']
pruning = dict(target=dict(flops=0.3))
