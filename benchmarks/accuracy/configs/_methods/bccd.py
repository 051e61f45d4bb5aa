# Fisher and NAP on a detector of blood cells.
_base_ = ['../bccd_retinanet/_retinanet.py']
title = 'RetinaNet on BCCD'
about = """
A ResNet-18 of half and an FPN and head of a quarter of the usual channels,
trained from random weights on the 205 pictures of the training split, in
320x240 pixels, for 24 epochs of 26 iterations; tested on the 72 of the test
split. Channels are pruned to half of the flops during six epochs and
fine-tuned for twelve. [Longer schedules](bccd_retinanet.md).
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

_channels = dict(
    type='mmgfp.PruningHook',
    target=dict(flops=0.5),
    input_shape=_base_.input_shape,
    channels_per_step='auto',
    prune_share=1.0,
    save_at=(),
    # see camvid.py
    min_channels=8,
    normalize_by='none',
)
_nap = dict(type='KFAC', batches=4)
_each = dict(
    fisher_acts=dict(interval=5, normalize_by='acts'),
    nap_sum=dict(interval=12, criterion=_nap),
    fisher=dict(interval=5),
    nap_block=dict(interval=12, criterion=dict(_nap, aggregate='block')),
)
# name -> phase -> hook
pruning = None
experiments = {
    f'{_name}_flops_0.5': dict(prune={**_channels, **_more})
    for _name, _more in _each.items()
}
del _channels, _nap, _each
