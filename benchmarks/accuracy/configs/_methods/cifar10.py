# Every method on ResNet-20 and CIFAR-10 with a schedule of two epochs.
_base_ = ['../cifar10/_resnet20.py']
custom_imports = dict(
    imports=['mmgfp', 'data', 'models', 'precision', 'half_kfac']
)
title = 'ResNet-20 on CIFAR-10'
about = """
The baseline is fine-tuned from public weights for two epochs. Channels are
pruned during one epoch and fine-tuned for one. Single weights are pruned at
once and fine-tuned for one, or in four steps during the epoch before. Batches
have 128 pictures.
"""
commands = """
python benchmarks/accuracy/methods.py cifar10 --data-root DATA/cifar10 \\
    --weights DATA/cifar10_resnet20.th --seeds 1 2
python benchmarks/accuracy/methods_report.py
"""
metrics = {'accuracy/top1': '% top-1'}
train_dataloader = dict(
    collate_fn=dict(type='as_it_is'),
    dataset=dict(
        _delete_=True, type='CroppedBatches', folder='train', padding=4
    ),
)
baseline = dict(epochs=2, lr=0.02)
prune = dict(epochs=1, lr=0.005)
finetune = dict(epochs=1, lr=0.02)

_channels = dict(
    type='mmgfp.PruningHook',
    input_shape=_base_.input_shape,
    channels_per_step='auto',
    prune_share=1.0,
    save_at=(),
    normalize_by='none',
)
_nap = dict(type='KFAC', batches=16)
_pi = dict(_nap, damping='pi', formula='OBS')  # absolute, of strength 1e-3
_each = dict(
    fisher=dict(interval=10),
    fisher_acts=dict(interval=10, normalize_by='acts'),
    taylor=dict(interval=10, criterion=dict(type='Taylor')),
    l1=dict(interval=10, criterion=dict(type='L1')),
    nap=dict(interval=39, criterion=_nap),
    nap_acts=dict(interval=39, criterion=_nap, normalize_by='acts'),
    nap_acts_compensate=dict(
        interval=39, criterion=_nap, normalize_by='acts', compensate=True
    ),
    nap_pi_sum=dict(interval=39, criterion=dict(_pi, aggregate='sum')),
    nap_pi_block=dict(interval=39, criterion=_pi),
)
_widths = dict(
    type='mmgfp.SearchHook',
    input_shape=_base_.input_shape,
    after_target='train',
)
_searches = dict(
    uniform=dict(search=dict(type='Uniform', order=dict(type='L1'))),
    knapsack=dict(
        search=dict(type='Knapsack', criterion=dict(type='Fisher')),
        interval=39,
        steps=10,
    ),
    itpruner=dict(search=dict(type='ITPruner')),
    dcss=dict(
        search=dict(type='DCSS', order=dict(type='Fisher')),
        interval=39,
    ),
)
_searches['dcss_share'] = dict(_searches['dcss'], search_share=0.6)
_weights = dict(
    type='mmgfp.SparsityHook',
    after_target='train',
    input_shape=_base_.input_shape,
)
_elements = dict(
    magnitude=dict(criterion=dict(type='Magnitude')),
    nap=dict(criterion=dict(_nap, batches=64)),
    nap_strong=dict(criterion=dict(_nap, batches=64, strength=10.0)),
    nap_pi=dict(criterion=dict(_pi, batches=64)),
    nap_pi_compensate=dict(criterion=dict(_pi, batches=64), compensate=True),
    nap_pi_strong=dict(criterion=dict(_pi, batches=64, strength=0.01)),
    nap_pi_obd=dict(criterion=dict(_nap, batches=64, damping='pi')),
    nap_pi_obd_strong=dict(
        criterion=dict(_nap, batches=64, damping='pi', strength=0.1)
    ),
    nap_weak=dict(criterion=dict(_nap, batches=64, strength=0.1)),
    nap_empirical=dict(criterion=dict(_nap, batches=64, fisher='empirical')),
    nap_batches=dict(criterion=dict(_nap, batches=256)),
    nap_layer_norm=dict(criterion=dict(_nap, batches=64), layer_norm='sum'),
    nap_ratios=dict(
        criterion=dict(_nap, type='HalfKFAC', part='ratios', batches=64)
    ),
    nap_order=dict(
        criterion=dict(_nap, type='HalfKFAC', part='order', batches=64)
    ),
)
# name -> phase -> hook
pruning = None
experiments = {'unpruned': {}}
for _flops in (0.5, 0.3):
    for _name, _more in _each.items():
        _hook = {**_channels, **_more, 'target': dict(flops=_flops)}
        experiments[f'{_name}_flops_{_flops}'] = dict(prune=_hook)
    for _name, _more in _searches.items():
        _hook = {**_widths, **_more, 'target': dict(flops=_flops)}
        experiments[f'{_name}_flops_{_flops}'] = dict(prune=_hook)
for _density in (0.5, 0.2, 0.1, 0.05):
    for _name, _more in _elements.items():
        _hook = {**_weights, **_more, 'density': _density}
        experiments[f'{_name}_density_{_density}'] = dict(finetune=_hook)
for _density in (0.5, 0.2, 0.1, 0.05):  # in four steps of training
    for _name in _elements:
        _hook = {**_weights, **_elements[_name], 'density': _density}
        _hook.update(steps=4, interval=90)
        experiments[f'{_name}_steps_density_{_density}'] = dict(
            prune=_hook,
            finetune=dict(
                type='mmgfp.StructureHook',
                structure=f'{{out}}/prune/density_{_density:.2f}.json',
            ),
        )
del _name, _more, _hook, _flops, _density
