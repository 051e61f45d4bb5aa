# Methods on the detector of the quickstart.
_base_ = ['../../../../configs/quickstart/retinanet_r18_digits.py', '_half.py']
title = 'RetinaNet on scenes of digits'
about = """
The detector of the [quickstart](../quickstart.md), trained as there for four
epochs from random weights, of 250 iterations with eight scenes. Channels are
pruned to half of the flops during one epoch and fine-tuned for two. Single
weights are pruned at once and fine-tuned for two, or in four steps during the
epoch before.
"""
commands = """
python tools/make_digits.py --out DATA/digits
python benchmarks/accuracy/methods.py digits --data-root DATA/digits
python benchmarks/accuracy/methods_report.py
"""
custom_imports = dict(imports=['mmgfp', 'precision'])
metrics = {'coco/bbox_mAP': 'mAP'}
decimals = 3
val_dataloader = None
val_evaluator = None
val_cfg = None
test_evaluator = dict(ann_file='annotations/val.json')
test_cfg = dict()
optim_wrapper = dict(type='FastestOptimWrapper')

input_shape = (128, 128)  # that cost is counted at
# epochs and learning rate of each phase
baseline = dict(epochs=4, lr=2e-3, warmup=100)
prune = dict(epochs=1, lr=3e-4)
finetune = dict(epochs=2, lr=1e-3, warmup=50)

_nap = dict(type='KFAC', batches=16)
_channels = dict(
    type='mmgfp.PruningHook',
    target=dict(flops=0.5),
    channels_per_step='auto',
    prune_share=1.0,
    save_at=(),
    normalize_by='none',
)
_each = dict(
    fisher_acts=dict(interval=5),
    fisher=dict(_channels, interval=5),
    nap=dict(_channels, interval=24, criterion=_nap),
    nap_acts=dict(_channels, interval=24, criterion=_nap, normalize_by='acts'),
    nap_acts_compensate=dict(
        _channels,
        interval=24,
        criterion=_nap,
        normalize_by='acts',
        compensate=True,
    ),
    fisher_flops=dict(interval=5),
    uniform=dict(),
    knapsack=dict(interval=24),
    itpruner=dict(),
    dcss=dict(interval=24),
)
# with less than eight channels oneDNN's gradients of strided 1x1 convolutions
# write past their memory (github.com/uxlfoundation/oneDNN/issues/6035)
_common = dict(input_shape=input_shape, min_channels=8)
experiments = {
    f'{_name}_flops_0.5': dict(prune={**_common, **_more})
    for _name, _more in _each.items()
}
_weights = dict(
    type='mmgfp.SparsityHook',
    density=0.2,
    after_target='train',
    input_shape=input_shape,
)
for _name, _criterion in (
    ('magnitude', dict(type='Magnitude')),
    ('nap', _nap),
    ('nap_weak', dict(_nap, strength=0.1)),
    # absolute, of strength 1e-3
    ('nap_pi', dict(_nap, damping='pi', formula='OBS')),
):
    _hook = dict(_weights, criterion=_criterion)
    experiments[f'{_name}_density_0.2'] = dict(finetune=_hook)
    experiments[f'{_name}_steps_density_0.2'] = dict(
        prune=dict(_hook, steps=4, interval=60),
        finetune=dict(
            type='mmgfp.StructureHook',
            structure='{out}/prune/density_0.20.json',
        ),
    )
del _nap, _channels, _each, _common, _weights, _hook, _name, _criterion
