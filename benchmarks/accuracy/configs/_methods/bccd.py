# Pruning and searches of widths on a detector of blood cells.
_base_ = ['../bccd_retinanet/_retinanet.py']
title = 'RetinaNet on BCCD'
about = """
A ResNet-18 of half and an FPN and head of a quarter of the usual channels,
trained from random weights on the 205 pictures of the training split, in
320x240 pixels, for 24 epochs of 26 iterations; tested on the 72 of the test
split. Channels are pruned to half of the flops during six epochs and
fine-tuned for twelve. [Longer schedules](bccd_retinanet.md). ITPruner
has no row: it leaves 11 inputs to a strided convolution, with which oneDNN
aborts on AVX-512 ([the fault](../faq.md)).
"""
commands = """
git clone https://github.com/Shenggan/BCCD_Dataset DATA/bccd
python benchmarks/accuracy/methods.py bccd --data-root DATA/bccd
python benchmarks/accuracy/methods_report.py
"""
metrics = {'pascal_voc/mAP': 'mAP (mean over IoU 0.5 to 0.95)'}
decimals = 3
baseline = dict(epochs=24)
prune = dict(epochs=6)
finetune = dict(epochs=12, lr=0.002)

_half = dict(
    target=dict(flops=0.5),
    input_shape=_base_.input_shape,
    min_channels=8,  # see camvid.py
)
_channels = dict(
    type='mmgfp.PruningHook',
    channels_per_step='auto',
    prune_share=1.0,
    save_at=(),
    normalize_by='none',
    **_half,
)
_widths = dict(type='mmgfp.SearchHook', after_target='train', **_half)
_fisher = dict(type='Fisher')
_nap = dict(type='KFAC', batches=4)
_pi = dict(_nap, damping='pi')  # absolute, of strength 1e-3
_each = dict(
    fisher_acts=dict(interval=5, normalize_by='acts'),
    nap_sum=dict(interval=12, criterion=_nap),
    fisher=dict(interval=5),
    nap_block=dict(interval=12, criterion=dict(_nap, aggregate='block')),
    nap_pi_sum=dict(interval=12, criterion=_pi),
    nap_pi_block=dict(interval=12, criterion=dict(_pi, aggregate='block')),
)
_searches = dict(
    dcss=dict(search=dict(type='DCSS', order=_fisher), interval=15),
    uniform=dict(search=dict(type='Uniform', order=dict(type='L1'))),
    knapsack=dict(
        search=dict(type='Knapsack', criterion=_fisher), interval=15, steps=10
    ),
    itpruner=dict(search=dict(type='ITPruner')),
)
# name -> phase -> hook
pruning = None
experiments = {
    f'{_name}_flops_0.5': dict(prune={**_channels, **_more})
    for _name, _more in _each.items()
}
experiments.update(
    {
        f'{_name}_flops_0.5': dict(prune={**_widths, **_more})
        for _name, _more in _searches.items()
    }
)
del _half, _channels, _widths, _fisher, _nap, _each, _searches
