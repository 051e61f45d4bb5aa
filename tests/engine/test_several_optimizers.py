"""Networks whose parts have optimisers of their own, as GANs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.registry import MODELS, OPTIM_WRAPPER_CONSTRUCTORS
from test_resume import forget_after_checkpoint, run
from toy import (
    ToyClassifier,
    ToyGAN,
    load,
    loader,
    make_config,
    pruning_hook,
    removals,
)

from mmgfp import Structure

ADAM = dict(type='Adam', lr=0.01)
STILL = dict(type='SGD', lr=0.0)


def parts(generator=None, discriminator=None, optimizer=ADAM, **both) -> dict:
    """Settings of the wrapper of each part."""
    return dict(
        constructor='OneEach',
        generator=dict(optimizer=optimizer, **both, **(generator or {})),
        discriminator=dict(
            optimizer=optimizer, **both, **(discriminator or {})
        ),
    )


def config(work_dir: Path, every: int = 1, hook=None, **changes):
    changes = dict(dict(optim_wrapper=parts()), **changes)
    model = dict(type='ToyGAN', every=every)
    return make_config(work_dir, hook=hook, model=model, **changes)


def widths(model: ToyGAN) -> list[int]:
    return [len(m.weight) for m in model.modules() if hasattr(m, 'weight')]


@pytest.mark.parametrize('cut_to', [1, 0])
def test_the_generator_is_pruned_and_both_train_on(tmp_path, cut_to):
    hook = dict(after_target='train', cut_to=cut_to)
    often = dict(type='SaveOften', interval=3)
    runner = run(config(tmp_path, hook=hook), often)
    assert pruning_hook(runner).pruner.net.ratio('flops') <= 0.5
    *generator, first, last = widths(runner.model)
    assert [first, last] == [8, 1]
    assert generator[0] < 10 or generator[2] < 12
    for wrapper in runner.optim_wrapper.values():
        for parameter, state in wrapper.optimizer.state.items():
            assert state['exp_avg'].shape == parameter.shape
            assert state['step'] == 24
    for name in (*(f'often_{i}' for i in range(3, 25, 3)), 'epoch_6'):
        slim, saved = ToyGAN(), load(tmp_path / f'{name}.pth')
        Structure.from_dict(saved['mmgfp_structure']).apply(slim)
        slim.load_state_dict(saved['state_dict'])
        for part in ('generator', 'discriminator'):
            shapes = [p.shape for p in getattr(slim, part).parameters()]
            states = saved['optimizer'][part]['state'].values()
            assert [state['exp_avg'].shape for state in states] == shapes
    images = torch.rand(2, 3, 8, 8)
    assert slim.eval()(images).equal(runner.model.eval()(images))


def pruned_at(folder: Path, **changes) -> list[int]:
    """Iterations in which something went."""
    hook = dict(interval=2, channels_per_step=1, target=dict(flops=0.2))
    run(config(folder, hook=hook, **changes))
    return [removal['iter'] for removal in removals(folder)]


@pytest.mark.parametrize(
    'changes, apart',
    [
        (dict(), 2),
        (dict(every=3), 6),
        (dict(optim_wrapper=parts(dict(accumulative_counts=4))), 8),
        # the discriminator's steps do not matter
        (dict(optim_wrapper=parts(None, dict(accumulative_counts=4))), 2),
    ],
    ids=['plain', 'every-third', 'accumulated', 'other-accumulated'],
)
def test_the_interval_counts_steps_that_train_prunable_layers(
    tmp_path, changes, apart
):
    assert pruned_at(tmp_path, **changes) == list(range(apart, 25, apart))


def first_scores(folder: Path, interval: int, wrappers: dict) -> np.ndarray:
    """Scores of all units after 8 iterations in which nothing is learnt."""
    hook = dict(interval=interval, channels_per_step=1, target=dict(flops=0.9))
    runner = run(
        config(
            folder,
            hook=hook,
            optim_wrapper=wrappers,
            train_dataloader=loader(shuffle=False),
            train_cfg=dict(by_epoch=True, max_epochs=2),
        )
    )
    scores = pruning_hook(runner).pruner.net.structure().scores
    return np.concatenate([g.scores for g in scores.groups.values()])


def test_scores_do_not_depend_on_who_accumulates_how_much(tmp_path):
    plain = first_scores(tmp_path / 'plain', 8, parts(optimizer=STILL))
    four = dict(accumulative_counts=4)
    own = parts(four, optimizer=STILL)
    other = parts(None, dict(accumulative_counts=2), optimizer=STILL)
    for name, interval, wrappers in [('own', 2, own), ('other', 8, other)]:
        found = first_scores(tmp_path / name, interval, wrappers)
        np.testing.assert_allclose(found, plain, rtol=1e-5)
    assert plain.max() > 0


def test_each_has_a_loss_scale_of_its_own(tmp_path):
    runs = []
    for name, scales in dict(one=(1024.0, 64.0), two=(8.0, 2.0)).items():
        amp = [dict(init_scale=scale) for scale in scales]
        wrappers = parts(*amp, type='CpuAmpOptimWrapper')
        run(config(tmp_path / name, optim_wrapper=wrappers))
        runs.append(removals(tmp_path / name))
    # powers of two leave the mantissas alone
    assert runs[0] == runs[1]
    assert len(runs[0]) > 2


@pytest.mark.parametrize('cut_to', [1, 4])
def test_resumed_equals_uninterrupted(tmp_path, cut_to):
    settings = dict(
        every=2,
        hook=dict(interval=2, after_target='train', cut_to=cut_to),
        optim_wrapper=parts(None, dict(accumulative_counts=2)),
        train_dataloader=loader(augment=True),
    )
    ema = dict(type='EMAHook', momentum=0.1, update_buffers=True)
    whole = run(config(tmp_path / 'whole', **settings), ema)
    interrupted = tmp_path / 'interrupted'
    with pytest.raises(KeyboardInterrupt):
        stop = dict(type='Stop', iteration=6)
        run(config(interrupted, **settings), ema, stop)
    forget_after_checkpoint(interrupted)
    torch.manual_seed(123)
    resumed = run(config(interrupted, **settings), ema, resume=True)
    assert removals(whole.work_dir) == removals(interrupted)
    assert len(removals(interrupted)) >= 3
    expected = whole.model.state_dict()
    for name, tensor in resumed.model.state_dict().items():
        assert tensor.equal(expected[name]), name
    for name, wrapper in resumed.optim_wrapper.items():
        states = wrapper.state_dict()['state']
        wanted = whole.optim_wrapper[name].state_dict()['state']
        for key, state in states.items():
            for part, value in state.items():
                assert torch.equal(value, wanted[key][part]), (name, part)


def test_a_bad_batch_of_the_generator_is_skipped(tmp_path):
    """The discriminator, which saw no harm, keeps its step."""
    data = loader(shuffle=False, factors={9: 'nan'})
    hook = dict(interval=4, channels_per_step=1, target=dict(flops=0.2))
    runner = run(config(tmp_path, hook=hook, train_dataloader=data))
    assert pruning_hook(runner)._tally.skipped == 6  # once per epoch
    for name, tensor in runner.model.state_dict().items():
        assert tensor.isfinite().all(), name


def test_a_search_needs_a_loss(tmp_path):
    """Of a GAN there is none: both parts play against each other."""
    search = dict(type='mmgfp.SearchHook', search=dict(type='DCSS'))
    search.update(target=dict(flops=0.5), input_shape=(8, 8))
    settings = config(tmp_path)
    settings.custom_hooks = [search]
    with pytest.raises(ValueError, match=r"ToyGAN.*mode='loss'"):
        run(settings)


@MODELS.register_module(force=True)
class TwoParts(ToyClassifier):
    """Its head has an optimiser of its own."""

    def train_step(self, data: dict, optim_wrapper: Any) -> dict:
        losses = self._run_forward(
            self.data_preprocessor(data, True), mode='loss'
        )
        loss, logged = self.parse_losses(losses)
        for wrapper in optim_wrapper.values():
            wrapper.zero_grad()
        optim_wrapper['body'].backward(loss)
        for wrapper in optim_wrapper.values():
            wrapper.step()
        return logged


@OPTIM_WRAPPER_CONSTRUCTORS.register_module(force=True)
class HeadAlone:
    def __init__(self, **settings: Any) -> None:
        self.settings = settings

    def __call__(self, model: ToyClassifier) -> OptimWrapperDict:
        head = list(model.head.parameters())
        own = {id(p) for p in head}
        body = [p for p in model.parameters() if id(p) not in own]
        return OptimWrapperDict(
            body=OptimWrapper(torch.optim.Adam(body, lr=0.01)),
            head=OptimWrapper(torch.optim.SGD(head, lr=0.05)),
        )


def test_a_search_with_two_optimisers(tmp_path):
    search = dict(type='mmgfp.SearchHook', search=dict(type='DCSS'))
    search.update(target=dict(flops=0.5), input_shape=(8, 8))
    settings = make_config(
        tmp_path,
        model=dict(type='TwoParts'),
        optim_wrapper=dict(constructor='HeadAlone'),
    )
    settings.custom_hooks = [search]
    runner = run(settings)
    for wrapper in runner.optim_wrapper.values():
        for parameter, state in wrapper.optimizer.state.items():
            if 'exp_avg' in state:
                assert state['exp_avg'].shape == parameter.shape
    assert Structure.load(tmp_path / 'flops_0.50.json').axes
