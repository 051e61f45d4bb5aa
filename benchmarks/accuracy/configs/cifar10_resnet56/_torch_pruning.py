# Torch-Pruning's own grouping and importance; the same target and pace.
_base_ = ['_resnet56.py']
custom_imports = dict(
    imports=['mmgfp', 'data', 'models', 'peers', 'precision']
)
pruning = dict(
    _delete_=True,
    type='TorchPruningHook',
    target=dict(flops=0.5),
    input_shape={{_base_.input_shape}},
    interval=10,
)
