# Prunes the weights of what retinanet_r18_digits.py trained to a fifth.
_base_ = ['./retinanet_r18_digits.py', '../_base_/digits_pruning.py']

load_from = 'work_dirs/quickstart/retinanet/baseline/epoch_4.pth'

param_scheduler = []

pruning = dict(
    _delete_=True,
    type='mmgfp.SparsityHook',
    density=0.2,
    finetune=_base_.pruning.finetune,
)
custom_hooks = [pruning]
