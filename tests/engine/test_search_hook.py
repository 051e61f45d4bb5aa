"""Searches run inside a runner, resume exactly, and leave slim networks."""

from __future__ import annotations

import copy
import signal
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import (
    BaseDataset,
    ClassBalancedDataset,
    ConcatDataset,
    RepeatDataset,
)
from mmengine.hooks import Hook
from mmengine.registry import HOOKS, MODELS
from mmengine.runner import Runner
from processes import run_tool
from torch.utils.checkpoint import checkpoint
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    SequentialSampler,
    Subset,
)
from toy import (
    ToyClassifier,
    load,
    loader,
    make_config,
    raw_outputs,
    validated,
)

from mmgfp import SearchHook, Structure, build_pruned_model
from mmgfp.engine.calibration import batch_images
from mmgfp.engine.search_state import (
    SEARCH_KEY,
    Tally,
    read_search_state,
    stamped_search,
)
from mmgfp.engine.split_data import Batches, PartOfData, split_data
from mmgfp.libraries.models import load_model
from mmgfp.registry import SEARCHES
from mmgfp.report.workdir import read_course
from mmgfp.search.dcss import DCSS
from mmgfp.slimming.structure import KEY

STEM = 'flops_0.50'
EMA = dict(type='EMAHook', momentum=0.2)
DCSS_ON_FISHER = dict(type='DCSS', order=dict(type='Fisher'))


def search_config(
    work_dir: Path, *hooks: dict, hook: dict | None = None, **changes: Any
) -> Config:
    """Six epochs of four iterations."""
    config = make_config(work_dir, **changes)
    searching = dict(
        type='mmgfp.SearchHook',
        search=dict(type='DCSS'),
        target=dict(flops=0.5),
        input_shape=(8, 8),
    )
    searching.update(hook or {})
    config.custom_hooks = [searching, *hooks]
    return config


def train(config: Config) -> Runner:
    runner = Runner.from_cfg(config)
    runner.train()
    return runner


def hook_of(runner: Runner) -> SearchHook:
    (hook,) = [h for h in runner.hooks if isinstance(h, SearchHook)]
    return hook


# -- what is saved ---------------------------------------------------------


@pytest.mark.parametrize(
    'search',
    [
        *(dict(type='DCSS'), DCSS_ON_FISHER),
        *(dict(type='Knapsack'), dict(type='ITPruner', images=24)),
    ],
    ids=str,
)
def test_files_of_a_search(tmp_path, search):
    config = search_config(tmp_path, hook=dict(search=search, interval=4))
    runner = train(config)
    for ending in ('.pth', '.json', '.png', '_finetune.py'):
        assert (tmp_path / f'{STEM}{ending}').exists()
    structure = Structure.load(tmp_path / f'{STEM}.json')
    assert structure.axes
    ratio = structure.cost_after['flops'] / structure.cost_before['flops']
    assert 0.3 < ratio <= 0.5
    # the three ways to load it
    expected = raw_outputs(runner.model, (8, 8))
    built = build_pruned_model('ToyClassifier', tmp_path / f'{STEM}.json')
    built.load_state_dict(load(tmp_path / f'{STEM}.pth')['state_dict'])
    finetune = Config.fromfile(tmp_path / f'{STEM}_finetune.py')
    assert [h['type'] for h in finetune.custom_hooks] == [
        'mmgfp.StructureHook'
    ]
    from_config = load_model(finetune, str(tmp_path / f'{STEM}.pth'))
    plain = load_model(config, str(tmp_path / f'{STEM}.pth'))
    for model in (built, from_config, plain):
        for found, wanted in zip(raw_outputs(model, (8, 8)), expected):
            torch.testing.assert_close(found, wanted)


def test_a_step_may_leave_less_than_the_next_one_wants(tmp_path):
    """One of eight channels is more than a step of twenty removes."""
    search = dict(type='Knapsack', criterion=dict(type='L1'))
    config = search_config(
        tmp_path, hook=dict(search=search, steps=20, interval=1)
    )
    hook = hook_of(train(config))
    assert hook.net.masks.cuts < 20
    assert 0.3 < hook.net.ratio('flops') <= 0.5
    assert (tmp_path / f'{STEM}.pth').exists()


@pytest.mark.parametrize(
    ('criterion', 'expected'), [('L1', [0, 7, 14]), ('Fisher', [7, 14, 21])]
)
def test_the_network_trains_between_steps(tmp_path, criterion, expected):
    """A criterion of weights needs no iteration before the first one."""
    search = dict(type='Knapsack', criterion=dict(type=criterion))
    config = search_config(
        tmp_path, hook=dict(search=search, steps=3, interval=7)
    )
    runner = Runner.from_cfg(config)
    at: list[int] = []
    cut = SearchHook._cut

    def noted(hook: SearchHook, runner: Runner) -> None:
        at.append(runner.iter + (hook._tally.steps > 0))
        cut(hook, runner)

    hook_of(runner)._cut = partial(noted, hook_of(runner))
    runner.train()
    assert at == expected
    assert hook_of(runner).net.ratio('flops') <= 0.5


def test_the_page_shows_the_course_of_widths(tmp_path):
    train(search_config(tmp_path, hook=dict(report=True)))
    groups, course = read_course(tmp_path / f'{STEM}_search.json')
    assert groups == ['stem', 'conv1']
    assert [step for step, _ in course] == list(range(1, 25))
    assert course[0][1] == [1.0, 1.0] and max(course[-1][1]) <= 1
    page = (tmp_path / 'report.html').read_text('utf-8')
    assert 'expected widths over the search' in page
    assert (tmp_path / 'report' / f'widths_{STEM}.png').exists()


@pytest.mark.parametrize(
    'text', ['', '[]', '{"groups": ["a"], "course": []}', '{"groups": 3}']
)
def test_files_that_are_no_course(tmp_path, text):
    path = tmp_path / 'flops_0.50_search.json'
    path.write_text(text)
    with pytest.raises(ValueError, match='is no course of a search'):
        read_course(path)


def test_no_gate_is_left_behind(tmp_path):
    config = search_config(tmp_path, hook=dict(after_target='train'))
    model = train(config).model
    for module in model.modules():
        assert not module._forward_pre_hooks and not module._forward_hooks
        assert all(
            isinstance(p, torch.nn.Parameter)
            for p in module._parameters.values()
            if p is not None
        )


def test_training_goes_on_after_the_search(tmp_path):
    hook = dict(after_target='train', search_share=0.5)
    runner = train(search_config(tmp_path, hook=hook))
    assert runner.epoch == 6
    saved = load(tmp_path / f'{STEM}.pth')['state_dict']
    trained = runner.model.state_dict()
    assert saved.keys() == trained.keys()
    assert any(not saved[k].equal(trained[k]) for k in saved)
    assert all(saved[k].shape == trained[k].shape for k in saved)
    assert load(tmp_path / f'{STEM}.pth')['meta']['iter'] == 12


@pytest.mark.parametrize(
    'changes',
    [
        dict(
            optim_wrapper=dict(
                type='CpuAmpOptimWrapper', optimizer=dict(type='SGD', lr=0.05)
            )
        ),
        dict(
            optim_wrapper=dict(
                optimizer=dict(type='AdamW', lr=0.01), accumulative_counts=2
            )
        ),
        dict(train_cfg=dict(by_epoch=False, max_iters=20)),
        dict(model=dict(type='ToyClassifier', norm='BN', dropout=0.2)),
        dict(hook=dict(split='val'), **validated()),
        dict(hook=dict(split=0)),
        dict(hook=dict(target=dict(params=0.4), round_to=4)),
    ],
    ids=str,
)
def test_ways_to_train(tmp_path, changes):
    runner = train(search_config(tmp_path, **changes))
    hook = hook_of(runner)
    assert hook._tally.phase == 'done'
    assert hook.net is not None
    assert hook.net.ratio(hook.metric) <= hook.ratio
    if hook.floor.round_to == 4:
        assert all(g.channels % 4 == 0 for g in hook.net.units.groups)


def test_averages_are_cut_too(tmp_path):
    runner = train(search_config(tmp_path, EMA))
    (average,) = [h for h in runner.hooks if hasattr(h, 'ema_model')]
    shapes = {k: v.shape for k, v in runner.model.state_dict().items()}
    inner = average.ema_model.module.state_dict()
    assert {k: v.shape for k, v in inner.items()} == shapes


def test_logits_do_not_learn_what_weights_learn(tmp_path):
    """Gradients of weights and statistics stay as they are."""
    model = dict(type='ToyClassifier', norm='BN')
    runner = Runner.from_cfg(search_config(tmp_path, model=model))
    seen: list[int] = []
    hook = hook_of(runner)

    def slope(runner: Runner, values: torch.Tensor) -> torch.Tensor:
        parameters = {
            k: (p.detach().clone(), None if p.grad is None else p.grad.clone())
            for k, p in runner.model.named_parameters()
        }
        buffers = copy.deepcopy(dict(runner.model.named_buffers()))
        found = SearchHook._slope(hook, runner, values)
        for name, parameter in runner.model.named_parameters():
            weight, grad = parameters[name]
            assert parameter.equal(weight)
            assert grad is None or parameter.grad.equal(grad)
        for name, buffer in runner.model.named_buffers():
            assert buffer.equal(buffers[name]), name
        assert found.shape == values.shape and found.any()
        seen.append(runner.iter)
        return found

    hook._slope = slope
    runner.train()
    assert seen == list(range(3, 24))  # a tenth of the steps is warm-up


@MODELS.register_module(force=True)
class Checkpointed(ToyClassifier):
    """Computes a part again in the backward pass, as ``with_cp=True``."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        run = self.conv1.forward

        def again(x: torch.Tensor) -> torch.Tensor:
            return checkpoint(run, x, use_reentrant=True)

        self.conv1.forward = again
        try:
            return super().forward(*args, **kwargs)
        finally:
            self.conv1.forward = run


def first_slope(config: Config) -> torch.Tensor:
    """The gradient by the gates in the first step."""
    runner = Runner.from_cfg(config)
    found: list[torch.Tensor] = []
    slope = hook_of(runner)._slope

    def noted(runner: Runner, values: torch.Tensor) -> torch.Tensor:
        found.append(slope(runner, values))
        return found[-1]

    hook_of(runner)._slope = noted
    runner.train()
    return found[0]


def test_recomputed_parts_have_gradients_too(tmp_path):
    plain, recomputed = (
        first_slope(search_config(tmp_path / kind, model=dict(type=kind)))
        for kind in ('ToyClassifier', 'Checkpointed')
    )
    assert plain.abs().min() > 0
    torch.testing.assert_close(plain, recomputed)


@HOOKS.register_module(force=True)
class EndInThirdEpoch(Hook):
    def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any):
        if runner.iter == 10:
            runner.train_loop.stop_training = True


def test_a_search_that_ends_too_early_says_so(tmp_path):
    config = search_config(tmp_path, dict(type='EndInThirdEpoch'))
    runner = train(config)
    assert hook_of(runner)._tally.phase == 'done'
    (log,) = tmp_path.glob('*/*.log')
    assert 'after 12 of 24 steps of the search' in log.read_text()


# -- resuming --------------------------------------------------------------


def resumable(work_dir: Path, *hooks: dict, **changes: Any) -> Config:
    settings = dict(
        model=dict(type='ToyClassifier', norm='BN', dropout=0.2),
        train_dataloader=loader(augment=True),
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=0.01)),
        hook=dict(after_target='train', search_share=0.8),
    )
    settings.update(changes)
    return search_config(work_dir, *hooks, **settings)


ITERATIONS = dict(
    train_dataloader=dict(
        loader(augment=True),
        sampler=dict(type='InfiniteSampler', shuffle=True),
    ),
    train_cfg=dict(by_epoch=False, max_iters=24),
    default_hooks=dict(
        checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=5)
    ),
)
SCORED = dict(
    hook=dict(
        search=DCSS_ON_FISHER,
        interval=6,
        after_target='train',
        search_share=0.8,
    )
)


@pytest.mark.parametrize('stop', [5, 13, 22])
@pytest.mark.parametrize(
    'changes', [{}, ITERATIONS, SCORED], ids=['epochs', 'iterations', 'scored']
)
def test_resumed_equals_uninterrupted(tmp_path, changes, stop):
    """In scoring, in learning, and after it."""
    whole = train(resumable(tmp_path / 'whole', **changes))
    again = tmp_path / 'again'
    with pytest.raises(KeyboardInterrupt):
        train(resumable(again, dict(type='Stop', iteration=stop), **changes))
    config = resumable(again, **changes)
    config.resume = True
    resumed = train(config)
    one, other = whole.model.state_dict(), resumed.model.state_dict()
    assert one.keys() == other.keys()
    for name in one:
        assert one[name].equal(other[name]), name
    first, second = (
        Structure.load(folder / f'{STEM}.json')
        for folder in (tmp_path / 'whole', again)
    )
    one, other = first.to_dict(), second.to_dict()
    assert one | {'source': ''} == other | {'source': ''}


def test_resumed_after_a_kill(tmp_path):
    def run(name: str, *hooks: dict, options: tuple = ()) -> Any:
        config = resumable(tmp_path / name, *hooks)
        path = tmp_path / f'{name}{len(hooks)}.py'
        config.dump(path)
        return run_tool('train.py', path, *options)

    assert run('whole').returncode == 0
    kill = dict(type='Stop', iteration=13, kill=True)
    assert run('killed', kill).returncode == -signal.SIGKILL
    done = run('killed', options=('--resume',))
    assert done.returncode == 0, done.stderr
    one, other = (
        load(tmp_path / name / f'{STEM}.pth')['state_dict']
        for name in ('whole', 'killed')
    )
    for name in one:
        assert one[name].equal(other[name]), name


def test_other_settings_are_not_resumed(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(resumable(tmp_path, dict(type='Stop', iteration=13)))
    for change, words in (
        (
            dict(split=0.25),
            r'split=0\.25, but .* had split=0\.5',
        ),
        (dict(target=dict(flops=0.4)), r"target=\{'flops': 0\.4\}, but"),
    ):
        config = resumable(tmp_path, hook=change)
        config.resume = True
        with pytest.raises(ValueError, match=words):
            train(config)


def test_a_resume_within_an_epoch_is_said_to_differ(tmp_path):
    within = dict(
        default_hooks=dict(
            checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=5)
        )
    )
    stop = dict(type='Stop', iteration=13)
    with pytest.raises(KeyboardInterrupt):
        train(resumable(tmp_path, stop, **within))
    config = resumable(tmp_path, **within)
    config.resume = True
    train(config)
    logs = ''.join(p.read_text() for p in tmp_path.glob('*/*.log'))
    assert logs.count('saved within an epoch') == 1


def test_another_search_is_not_resumed(tmp_path):
    state = stamped_search('DCSS', Tally(), **_parts())
    assert read_search_state(state, 'DCSS')['type'] == 'DCSS'
    with pytest.raises(ValueError, match=r"search by 'DCSS'.*has Uniform"):
        read_search_state(state, 'Uniform')


def _parts() -> dict[str, Any]:
    return dict(criterion={}, scores=[], search={}, batches=[], random=[])


@pytest.mark.parametrize(
    'change, words',
    [
        (lambda s: 3, 'holds 3 under'),
        (lambda s: {**s, 'version': 9}, 'in version 9'),
        (lambda s: {**s, 'scores': None}, 'in which scores is missing'),
        (lambda s: {**s, 'tally': {}}, r'tally\.phase is'),
    ],
)
def test_states_that_cannot_be_resumed(change, words):
    state = change(stamped_search('DCSS', Tally(), **_parts()))
    with pytest.raises(ValueError, match=words):
        read_search_state(state, 'DCSS')


def test_checkpoints_within_a_search_are_whole(tmp_path):
    config = resumable(tmp_path, dict(type='Stop', iteration=13))
    with pytest.raises(KeyboardInterrupt):
        train(config)
    checkpoint = load(tmp_path / 'epoch_3.pth')
    assert checkpoint[SEARCH_KEY]['tally']['phase'] == 'learning'
    assert Structure.from_dict(checkpoint[KEY], 'it').axes == {}
    assert len(checkpoint['state_dict']['conv1.weight']) == 12


# -- data in two parts -----------------------------------------------------


class Numbers(Dataset):
    def __init__(self) -> None:
        self.metainfo = dict(classes=('a',))

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> int:
        return index


def test_a_part_is_as_long_as_the_whole():
    part = PartOfData(Numbers(), np.array([1, 4, 7]))
    assert [part[i] for i in range(len(part))] == [1, 4, 7] * 3 + [1]
    assert part.__getitems__([0, 5]) == [1, 7]
    assert part.metainfo == dict(classes=('a',))
    assert [copy.deepcopy(part)[i] for i in range(3)] == [1, 4, 7]


class Classes(BaseDataset):
    def load_data_list(self) -> list[dict]:
        return [dict(number=number) for number in range(10)]

    def get_cat_ids(self, index: int) -> list[int]:
        return [index % 3]

    def __getitem__(self, index: int) -> int:
        return self.get_data_info(index)['number']


@pytest.mark.parametrize('kind', ['repeat', 'balance', 'concat', 'subset'])
def test_repeated_images_are_in_one_part(tmp_path, kind):
    inner = Classes()
    data = {
        'repeat': lambda: RepeatDataset(inner, 4),
        'balance': lambda: ClassBalancedDataset(inner, 0.9),
        'concat': lambda: ConcatDataset([inner, Classes()]),
        'subset': lambda: Subset(inner, [0, 3, 3, 5, 7, 7, 9]),
    }[kind]()
    runner = Runner.from_cfg(search_config(tmp_path))
    loop = runner.train_loop
    loop.dataloader = DataLoader(data, 2)
    other = split_data(runner, 0.5).dataset
    ours = loop.dataloader.dataset
    parts = [{d[i] for i in range(len(d))} for d in (ours, other)]
    assert parts[0] and parts[1]
    if kind == 'concat':  # equal numbers are of two data sets
        first, second = (set(d._part.tolist()) for d in (ours, other))
        assert not first & second and first | second == set(range(20))
        return
    assert not parts[0] & parts[1]
    assert parts[0] | parts[1] == {data[i] for i in range(len(data))}


def test_a_part_for_samplers_and_hooks():
    data = Classes()
    part = PartOfData(data, np.array([1, 5, 6]))
    assert [part.get_cat_ids(i) for i in range(4)] == [[1], [2], [0], [1]]
    part.pipeline = 'another'  # as PipelineSwitchHook does
    assert data.pipeline == 'another'
    assert not hasattr(part, 'cumulative_sizes')
    whole = PartOfData(ConcatDataset([data, data]), np.array([1, 5]))
    with pytest.raises(ValueError, match='sizes of concatenated data sets'):
        hasattr(whole, 'cumulative_sizes')


def test_images_of_a_batch():
    data = list(range(20))
    assert batch_images(DataLoader(data, 5)) == 5
    batches = BatchSampler(SequentialSampler(data), 4, drop_last=False)
    assert batch_images(DataLoader(data, batch_sampler=batches)) == 4
    assert batch_images(DataLoader(data, batch_size=None)) == 1


def test_weights_and_logits_see_other_images(tmp_path):
    runner = Runner.from_cfg(search_config(tmp_path, hook=dict(split=0.25)))
    weights: list[torch.Tensor] = []
    logits: list[torch.Tensor] = []
    seen = [weights]
    run = runner.model.data_preprocessor.forward

    def watch(data: Any, training: bool = False) -> Any:
        seen[0].extend(data['inputs'])
        return run(data, training)

    runner.model.data_preprocessor.forward = watch
    hook = hook_of(runner)

    def slope(runner: Runner, values: torch.Tensor) -> torch.Tensor:
        seen[0] = logits
        found = SearchHook._slope(hook, runner, values)
        seen[0] = weights
        return found

    hook._slope = slope
    runner.train()
    ours = {image.numpy().tobytes() for image in weights}
    theirs = {image.numpy().tobytes() for image in logits}
    assert ours and theirs and not ours & theirs
    assert len(ours) == pytest.approx(3 * len(theirs), abs=1)


def test_batches_continue_where_others_were():
    def make() -> Batches:
        torch.manual_seed(0)
        data = torch.utils.data.DataLoader(Numbers(), 3)
        return Batches(data)

    whole, first = make(), make()
    expected = [next(whole).tolist() for _ in range(10)]
    for _ in range(6):
        next(first)
    again = make()
    again.resume(first.epoch, first.taken)
    assert [next(again).tolist() for _ in range(4)] == expected[6:]


# -- bad input -------------------------------------------------------------


@pytest.mark.parametrize(
    'hook, words',
    [
        (dict(search=None), 'search=None: expected a dict such as'),
        (
            dict(search=dict(type='DCCS')),
            "no search 'DCCS'; did you mean 'DCSS'",
        ),
        (
            dict(search=dict(type='DCSS', candidate=3)),
            "no argument candidate=3; did you mean 'candidates'",
        ),
        (
            dict(search=dict(type='Knapsack', order=dict(type='L1'))),
            "Knapsack has no argument 'order'; .* named 'criterion'",
        ),
        (
            dict(search=dict(type='DCSS', criterion=dict(type='L1'))),
            "DCSS has no argument 'criterion'; .* named 'order'",
        ),
        (
            dict(search=dict(type='DCSS', order=dict(type='L9'))),
            "no criterion 'L9'",
        ),
        (dict(target=None), 'target=None: expected one metric'),
        (dict(steps=2), 'steps=2: DCSS is trained with the network'),
        (dict(split=1.0), r'split=1\.0: expected the ratio'),
        (dict(split='test'), "split='test': expected the ratio"),
        (dict(search_share=0), 'search_share=0 .*expected a ratio'),
        (dict(widths=3), "unknown argument 'widths'|widths"),
        (dict(target=dict(latency=0.5)), "of 'latency' needs latency_table"),
    ],
    ids=str,
)
def test_impossible_arguments(hook, words):
    settings = dict(search=dict(type='DCSS'), target=dict(flops=0.5))
    with pytest.raises((ValueError, TypeError), match=words):
        SearchHook(**{**settings, **hook})


@pytest.mark.parametrize(
    'changes, words',
    [
        (dict(hook=dict(target=dict(flops=0.01))), 'at least 0.* of flops'),
        (dict(hook=dict(split=0.01)), 'would have 0 of its 32 images'),
        (dict(hook=dict(split='val')), "split='val': expected a config"),
        (
            dict(hook=dict(search=DCSS_ON_FISHER, interval=30)),
            'needs at least 31 optimiser steps',
        ),
    ],
    ids=str,
)
def test_searches_that_cannot_begin(tmp_path, changes, words):
    with pytest.raises(ValueError, match=words):
        train(search_config(tmp_path, **changes))
    assert not list(tmp_path.glob('*.pth'))


@pytest.mark.parametrize(
    'other',
    [
        dict(type='mmgfp.SearchHook', search=dict(type='Uniform')),
        dict(type='mmgfp.PruningHook'),
    ],
    ids=str,
)
def test_one_hook_prunes_channels(tmp_path, other):
    config = search_config(tmp_path, dict(target=dict(flops=0.5), **other))
    with pytest.raises(ValueError, match=r'SearchHook.*expected one of them'):
        train(config)
    config = search_config(
        tmp_path, dict(type='mmgfp.SparsityHook', density=0.5)
    )
    with pytest.raises(ValueError, match='SearchHook and SparsityHook prune'):
        train(config)


def test_groups_without_scores_keep_their_width(tmp_path, monkeypatch):
    """As those of a part that got no gradients."""
    kind = SEARCHES.get('DCSS')
    assert kind is DCSS
    begun = DCSS.start
    budgets = []

    def start(self, net, budget, scores):
        budgets.append(budget)
        begun(self, net, budget, scores)

    monkeypatch.setattr(DCSS, 'start', start)
    config = search_config(
        tmp_path,
        dict(type='Freeze', part='conv2', begin=0),
        hook=dict(search=DCSS_ON_FISHER, interval=4),
    )
    runner = train(config)
    (budget,) = budgets
    sizes = dict(
        zip(
            (group.name for group in hook_of(runner).net.units.groups),
            hook_of(runner).net.units.sizes,
        )
    )
    full = {'stem': 8, 'conv1': 12}
    for name in budget.fixed:
        assert sizes[name] == full[name]
