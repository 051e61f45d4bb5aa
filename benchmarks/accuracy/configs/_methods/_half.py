# Methods that prune channels to half of the flops; lists add input_shape. The
# pruning phase needs 300 iterations.
_at = dict(target=dict(flops=0.5))
_channels = dict(
    type='mmgfp.PruningHook',
    interval=10,
    channels_per_step='auto',
    prune_share=1.0,
    save_at=(),
    **_at,
)
_widths = dict(type='mmgfp.SearchHook', after_target='train', **_at)
_fisher = dict(type='Fisher')
_each = dict(
    fisher_acts=dict(_channels, normalize_by='acts'),
    fisher_flops=dict(_channels, normalize_by='flops'),
    uniform=dict(_widths, search=dict(type='Uniform', order=dict(type='L1'))),
    knapsack=dict(
        _widths,
        search=dict(type='Knapsack', criterion=_fisher),
        interval=30,
        steps=10,
    ),
    itpruner=dict(_widths, search=dict(type='ITPruner')),
    dcss=dict(_widths, search=dict(type='DCSS', order=_fisher), interval=30),
)
# name -> phase -> hook
experiments = {'unpruned': {}}
for _name, _hook in _each.items():
    experiments[f'{_name}_flops_0.5'] = dict(prune=_hook)
del _at, _channels, _widths, _fisher, _each, _name, _hook
