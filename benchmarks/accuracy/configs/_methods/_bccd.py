# Methods that prune detectors of blood cells to half of the flops. Pruning
# needs 150 iterations. Lists repeat the schedule, because no two bases of a
# config may have the same keys.
_half = dict(
    target=dict(flops=0.5),
    input_shape=(256, 320),  # with what is padded
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
_pi = dict(_nap, damping='pi', formula='OBS')  # absolute, of strength 1e-3
_each = dict(
    fisher_acts=dict(interval=5, normalize_by='acts'),
    nap=dict(interval=12, criterion=_nap),
    nap_acts=dict(interval=12, criterion=_nap, normalize_by='acts'),
    nap_acts_compensate=dict(
        interval=12, criterion=_nap, normalize_by='acts', compensate=True
    ),
    fisher=dict(interval=5),
    nap_pi_sum=dict(interval=12, criterion=dict(_pi, aggregate='sum')),
    nap_pi_block=dict(interval=12, criterion=_pi),
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
del _half, _channels, _widths, _fisher, _nap, _pi, _each, _searches
