"""Prune one model at random and compare slim with masked; two processes.

The first, ``prune``, finds groups, removes random units and leaves what
pruning leaves: a config, a structure and a slim checkpoint. The second,
``check``, knows only these: it builds the slim model from them as a user
would. Each writes what it found, step by step, so that something is known of
a process that was stopped.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import math
import re
import resource
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch import Tensor, nn

from mmgfp.cost.model import CostModel, count_cost, record_calls
from mmgfp.engine.saved import finetune_config
from mmgfp.groups import ChannelGroup
from mmgfp.libraries.channel_groups import groups_at_some_size, runnable
from mmgfp.libraries.config import config_folder, load_config
from mmgfp.libraries.forward import demo_runner
from mmgfp.libraries.models import build_model, load_model
from mmgfp.libraries.pipeline import COCO_SHAPE, input_shape
from mmgfp.libraries.random_weights import vary_weights_
from mmgfp.slimming.positions import axis_sizes, kept_positions
from mmgfp.slimming.structure import KEY, Structure
from mmgfp.slimming.surgery import cut_model
from mmgfp.speed.memory import peak_memory_mb, reset_peak_memory
from mmgfp.tracing.selfcheck import (
    TOLERANCE,
    mask_consumers,
    random_removal,
    relative_error,
)
from mmgfp.utils.atomic import complete
from mmgfp.utils.errors import type_and_line
from mmgfp.utils.precision import Run, in_double
from mmgfp.utils.trees import look_into

Result = dict[str, Any]

STEM = 'slim'
FINE = 'yes'  # of predict and loss
NEITHER = 'nor unpruned: '  # of what the full network does not do either
IMAGES = 2
TARGET = 0.5  # share of the flops that stays
MOST = 0.75  # share of any group that goes
IMAGENET_SHAPE = (224, 224)
COUNTED = 256  # side of the images that cost is counted for, at least


def parse_args(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        description='Prune one model at random; compare slim with masked.',
        epilog='example: python benchmarks/zoo/zoo_trial.py prune '
        'mmdet::atss/atss_r50_fpn_1x_coco.py /tmp/atss && '
        'python benchmarks/zoo/zoo_trial.py check '
        'mmdet::atss/atss_r50_fpn_1x_coco.py /tmp/atss',
    )
    parser.add_argument('step', choices=['prune', 'check'])
    parser.add_argument('config', help='path or short form')
    parser.add_argument('folder', type=Path, help='for what pruning leaves')
    parser.add_argument(
        '--memory-limit', type=float, metavar='GB', help='of data (no limit)'
    )
    return parser.parse_args(arguments)


class TrialError(Exception):
    """A step failed; the result says which and how."""


class Trial:
    """One model; keeps what was found in ``result.json`` as it goes.

    Args:
        folder (Path): For all files of the trial.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / 'result.json'
        self.result: Result = {}
        if self.file.exists():
            self.result = json.loads(self.file.read_text(encoding='utf-8'))

    def note(self, **values: Any) -> None:
        """Add to the result, also in the file."""
        self.result.update(values)
        with complete(self.file) as partial:
            text = json.dumps(self.result, indent=1)
            Path(partial).write_text(text, encoding='utf-8')

    @property
    def name(self) -> str:
        """The config that is tried."""
        return self.result['config']

    @contextmanager
    def doing(self, step: str, fatal: bool = True) -> Iterator[None]:
        """Note which step is being done, and how it fails.

        Args:
            step (str): In words that complete "failed while ...".
            fatal (bool): Whether the trial ends with it; otherwise the
                failure is noted under the step's name. Defaults to True.
        """
        self.note(step=step)
        try:
            yield
        except Exception as error:
            self.keep_traceback(step)
            if fatal:
                self.note(error=type_and_line(error))
                raise TrialError from error
            self.note(**{step: type_and_line(error)})

    def keep_traceback(self, step: str) -> None:
        """Keep that of the error being handled."""
        with (self.folder / 'errors.txt').open('a') as file:
            file.write(f'{step}\n\n{traceback.format_exc()}\n')


# -- the first process -----------------------------------------------------


def prune(
    name: str,
    folder: Path,
    seed: int = 0,
    input_size: tuple[int, int] | None = None,
) -> Result:
    """Find groups, remove random units, leave a slim network.

    Args:
        name (str): Config, as :func:`mmgfp.libraries.config.load_config`
            takes it.
        folder (Path): For all files of the trial.
        seed (int): For everything random. Defaults to 0.
        input_size (tuple, optional): (H, W); by default a small one that
            works.
    """
    trial = Trial(folder)
    trial.note(config=name, seed=seed)
    with suppress(TrialError):
        _prune(trial, name, seed, input_size)
    return trial.result


def _prune(
    trial: Trial, name: str, seed: int, input_size: tuple[int, int] | None
) -> None:
    with trial.doing('build'):
        config = untrained_config(load(name))
        model = initial_model(config, seed)
        parameters = sum(p.numel() for p in model.parameters())
        trial.note(architecture=type(model).__name__, parameters=parameters)
    with trial.doing('forward'):
        sizes = forwards(model, config, input_size)
        shape, mode = first = next(sizes)
        vary_weights_(model, demo_runner(shape, IMAGES, mode), seed)
        trial.note(shape=list(shape), mode=mode)
    with trial.doing('groups'):
        reset_peak_memory()
        began = time.process_time()
        groups, shape, mode = groups_at_some_size(
            model, chain([first], sizes), IMAGES
        )
        run = demo_runner(shape, IMAGES, mode)
        trial.note(shape=list(shape), mode=mode)
        trial.note(
            seconds=round(time.process_time() - began, 2),
            memory_mb=peak_memory_mb(),
            groups=len(groups),
            prunable=sum(not g.frozen for g in groups),
        )
    with trial.doing('cost'):
        count, images = counting(model, config, shape, mode)
        calls = record_calls(model, lambda: count(model), images)
        rows = count_cost(model, calls)
        open_groups = [g for g in groups if not g.frozen]
        cost = CostModel(model, open_groups, calls)
        before = cost.total()
        least = cost.after_cut(np.array([g.size - 1 for g in open_groups]))
        reach = 1 - ratio(least, before)
        trial.note(
            flops=int(before['flops']),
            reach=round(reach, 4),
            computed_kernels=round(
                calls.unattributed(before['flops'])['computed_kernels'], 4
            ),
            frozen=frozen_reasons(model, groups, rows),
        )
    if not open_groups:
        trial.note(step='done')
        return
    removal = removed_units(open_groups, cost, seed)
    after = cost.after_cut(np.array([len(units) for units in removal]))
    trial.note(left=round(ratio(after, before), 4))
    with trial.doing('masking'):
        masked = copy.deepcopy(model)
        mask_consumers(masked, open_groups, removal)
        expected = {'single': outputs(masked, run)}
    with trial.doing('saving'):
        sizes = axis_sizes(model, open_groups)
        keep = kept_positions(open_groups, removal, sizes)
        structure = Structure(
            Structure({}).compose(keep, sizes),
            config.model.type,
            name,
            tuple(shape),
            before,
            after,
        )
        cut_model(model, keep)
        with suppress(Exception):  # if it does not run, the check will tell
            error = largest_error(expected['single'], outputs(model, run))
            if not error < TOLERANCE:
                double = outputs(masked.double(), in_double(run))
                expected['double'] = double
        torch.save(expected, trial.folder / 'expected.pt')
        leave_slim(model, structure, config, trial.folder)
    trial.note(step='pruned')


def initial_model(config: Config, seed: int) -> nn.Module:
    """The full network, initialised, in eval mode."""
    torch.manual_seed(seed)
    # heads write tensors and the like into the config they are given
    model = build_model(copy.deepcopy(config))
    if hasattr(model, 'init_weights'):
        model.init_weights()
    model.eval()  # a statement: some return nothing
    return model


def leave_slim(
    model: nn.Module, structure: Structure, config: Config, folder: Path
) -> None:
    """Write what pruning leaves of a slim network."""
    structure.save(folder / f'{STEM}.json')
    text = finetune_config(config, STEM, {})
    (folder / f'{STEM}.py').write_text(text, encoding='utf-8')
    torch.save(
        {'state_dict': model.state_dict(), KEY: structure.to_dict()},
        folder / f'{STEM}.pth',
    )


def load(name: str | Path) -> Config:
    """Load a config, and its library as training and inference do."""
    config = load_config(name)
    if config.get('default_scope') is None:
        # backbones alone, which nobody trains as they are, leave it out
        config.default_scope = str(name).partition('::')[0]
        init_default_scope(config.default_scope)
    # some parts of models are registered there
    import_module(f'{config.default_scope}.datasets')
    return config


def untrained_config(config: Config) -> Config:
    """What builds and trains a model on a CPU, without files from elsewhere.

    Weights of others go; nothing is frozen (as the documentation tells users
    of pretrained backbones); norms that are synchronised over GPUs become
    plain ones. Only what concerns the model is left of the config.
    """
    model = plain(config.model)
    for part in mappings(model):
        for key in ('init_cfg', 'pretrained'):
            if key in part and loads_file(part[key]):
                part[key] = False if part[key] is True else None
        for key in part:
            if key.endswith('_ckpt'):
                part[key] = None
            elif key == 'frozen_stages':
                # there the number of frozen stages, not the last one
                part[key] = 0 if part.get('type') == 'EfficientNet' else -1
            elif key == 'teacher_config' and isinstance(part[key], str):
                part[key] = installed_path(part[key])
        if part.get('type') in ('SyncBN', 'MMSyncBN'):
            part['type'] = 'BN'
    kept: dict[str, Any] = dict(model=model)
    for key in ('default_scope', 'data_preprocessor', 'custom_imports'):
        if config.get(key) is not None:
            kept[key] = plain(config[key])
    for phase in ('test', 'val', 'train'):
        if config.get(f'{phase}_dataloader'):
            pipeline = plain(config[f'{phase}_dataloader'])['dataset']
            while 'pipeline' not in pipeline and 'dataset' in pipeline:
                pipeline = pipeline['dataset']
            kept[f'{phase}_dataloader'] = dict(
                dataset=dict(pipeline=pipeline.get('pipeline'))
            )
    return Config(kept)


def plain(value: Any) -> Any:
    """Config dicts as plain ones."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(plain(item) for item in value)
    return value


def mappings(value: Any) -> Iterator[dict[str, Any]]:
    """All dicts inside, outer ones first."""
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from mappings(item)


def loads_file(init: Any) -> bool:
    """Whether an initialisation takes weights from a file or address."""
    if isinstance(init, dict):
        return 'Pretrained' in str(init.get('type')) or 'checkpoint' in init
    if isinstance(init, (list, tuple)):
        return any(loads_file(item) for item in init)
    return isinstance(init, str) or init is True


def installed_path(path: str) -> str:
    """A config that is named as seen from MMDetection's own folder."""
    installed = config_folder('mmdet').parent / path
    return str(installed) if installed.exists() else path


def usual_shape(config: Config) -> tuple[int, int]:
    """(H, W) of a config's images, or of its library's where it has none."""
    try:
        return input_shape(config)
    except ValueError:  # backbones alone, and data sets of several sizes
        detection = config.get('default_scope') == 'mmdet'
        return COCO_SHAPE if detection else IMAGENET_SHAPE


def forwards(
    model: nn.Module, config: Config, size: tuple[int, int] | None = None
) -> Iterator[tuple[tuple[int, int], str]]:
    """Input sizes and modes with which the model runs, cheapest first.

    The losses, where raw outputs and results hold no numbers.

    Raises:
        Exception: What the forward raised, if none works.
    """
    size = size or usual_shape(config)
    for shape, mode in runnable(model, size, IMAGES):
        if outputs(model, demo_runner(shape, IMAGES, mode)):
            yield shape, mode
        elif outputs(model, demo_runner(shape, IMAGES, 'loss')):
            yield shape, 'loss'
        else:
            raise RuntimeError('no outputs are numbers')


def counting(
    model: nn.Module, config: Config, shape: Sequence[int], mode: str
) -> tuple[Run, int]:
    """What cost is counted from, and for how many images.

    Heads on regions have their share: as many regions per area as the 512
    that the paper counts at 800x1280.
    """
    side = min(max(*shape, COUNTED), max(usual_shape(config)))
    regions = max(1, round(512 * side * side / (800 * 1280)))
    run = demo_runner((side, side), IMAGES, mode, proposals=regions)
    try:
        outputs(model, run)
    except Exception:  # the size may be fixed
        run = demo_runner(shape, IMAGES, mode)
    return run, IMAGES


def outputs(model: nn.Module, run: Run) -> list[Tensor]:
    """Floating outputs of one forward in eval mode."""
    model.eval()  # a statement: some return nothing
    torch.manual_seed(0)  # for models that draw something
    with torch.no_grad():
        found, _ = look_into(run(model))
    return [t.detach() for t in found if t.is_floating_point()]


def ratio(cost: Mapping[str, float], before: Mapping[str, float]) -> float:
    """Share of the flops."""
    return cost['flops'] / before['flops'] if before['flops'] else 1.0


def removed_units(
    groups: Sequence[ChannelGroup], cost: CostModel, seed: int
) -> list[np.ndarray]:
    """Random units of each group, so that about half of the flops go.

    Groups lose unequal shares: what only works as long as two groups lose
    equally many channels must not pass.
    """
    rng = np.random.default_rng(seed)
    pace = rng.uniform(0.5, 1.5, len(groups))
    before = cost.total()

    def units(scale: float) -> list[np.ndarray]:
        shares = np.minimum(scale * pace, MOST)
        return [
            random_removal([group], share, seed + i)[group.name]
            for i, (group, share) in enumerate(zip(groups, shares))
        ]

    low, high = 0.0, 1.5
    for _ in range(12):
        middle = (low + high) / 2
        counts = np.array([len(u) for u in units(middle)])
        if ratio(cost.after_cut(counts), before) > TARGET:
            low = middle
        else:
            high = middle
    return units(high)


def frozen_reasons(
    model: nn.Module,
    groups: Sequence[ChannelGroup],
    rows: Mapping[str, Mapping[str, float]],
) -> list[Result]:
    """Why groups are frozen: reason, groups, share of flops, an example."""
    known = {name for name, _ in model.named_modules() if name}
    known |= {name for name, _ in model.named_parameters()}
    by_reason: dict[str, list[ChannelGroup]] = {}
    for group in groups:
        if group.frozen:
            reason = without_names(group.frozen, known)
            by_reason.setdefault(reason, []).append(group)
    total = rows['']['flops'] or 1
    found = []
    for reason, members in by_reason.items():
        layers = {
            layer
            for group in members
            for layer in (*group.producers, *group.consumers)
        }
        flops = sum(rows[layer]['flops'] for layer in layers if layer in rows)
        found.append(
            dict(
                reason=reason,
                groups=len(members),
                flops=round(flops / total, 4),
                example=members[0].name,
                full=members[0].frozen,
            )
        )
    return sorted(found, key=lambda row: -row['flops'])


def without_names(reason: str, known: set[str]) -> str:
    """A reason without what differs from layer to layer."""
    text = ' '.join(_without_name(word, known) for word in reason.split(' '))
    text = re.sub(r'\([\d, ]+\)|\[[\d, ]+\]', '(...)', text)
    text = re.sub(r'\d+(\.\d+)?e[-+]\d+', '...', text)
    return re.sub(r'(?<!=-)\b\d+(\.\d+)?\b', 'N', text)


def _without_name(word: str, known: set[str]) -> str:
    name = word.strip(',;:.()')
    if name in known:
        return word.replace(name, 'a layer')
    if name.rpartition('.')[0] in known:
        return word.replace(name, f'{name.rpartition(".")[2]} of a layer')
    return word


# -- the second process ----------------------------------------------------


def check(folder: Path) -> Result:
    """Build the slim network from what pruning left, compare, train a step.

    Args:
        folder (Path): That :func:`prune` left.
    """
    trial = Trial(folder)
    if trial.result.get('step') == 'pruned':
        with suppress(TrialError):
            _check(trial)
    return trial.result


def _check(trial: Trial) -> None:
    shape, mode = trial.result['shape'], trial.result['mode']
    with trial.doing('slim build'):
        import mmgfp  # noqa: F401, registers the builder

        config = load(trial.folder / f'{STEM}.py')
        model = load_model(config, trial.folder / f'{STEM}.pth')
    with trial.doing('slim forward'):
        expected = torch.load(trial.folder / 'expected.pt', weights_only=True)
        run = demo_runner(shape, IMAGES, mode)
        error = largest_error(expected['single'], outputs(model, run))
        trial.note(error_single=error)
    if not error < TOLERANCE and 'double' in expected:
        with trial.doing('error_double', fatal=False):
            double = copy.deepcopy(model).double()
            error = largest_error(
                expected['double'], outputs(double, in_double(run))
            )
            trial.note(error_double=error)
    for step in ('predict', 'loss'):
        trial.note(step=step)
        outcome = attempt(step, model, shape, trial)
        if outcome != FINE:
            # some do not do it in their library either
            full = varied_model(trial)
            if attempt(step, full, shape, trial) == outcome:
                outcome = f'{NEITHER}{outcome}'
        trial.note(**{step: outcome})
    trial.note(step='done')


def varied_model(trial: Trial) -> nn.Module:
    """The full network as it was before it was pruned."""
    seed = trial.result['seed']
    model = initial_model(untrained_config(load(trial.name)), seed)
    shape, mode = trial.result['shape'], trial.result['mode']
    vary_weights_(model, demo_runner(shape, IMAGES, mode), seed)
    return model


def attempt(
    step: str, model: nn.Module, shape: Sequence[int], trial: Trial
) -> str:
    """Predict, or compute a loss and gradients; :data:`FINE` or trouble."""
    try:
        if step == 'predict':
            model.eval()
            demo_runner(shape, IMAGES, 'predict')(model)
            return FINE
        return train_step(model, shape)
    except Exception as error:  # the library's own code
        trial.keep_traceback(step)
        return type_and_line(error)


def largest_error(
    expected: Sequence[Tensor], found: Sequence[Tensor]
) -> float:
    """Largest relative error of any output.

    Raises:
        ValueError: If number or shapes of the outputs differ.
    """
    shapes = [[tuple(t.shape) for t in side] for side in (expected, found)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f'outputs have the shapes {shapes[1]}, masked {shapes[0]}'
        )
    errors = [relative_error(a, b) for a, b in zip(expected, found)]
    return math.nan if any(map(math.isnan, errors)) else max(errors)


def train_step(model: nn.Module, shape: Sequence[int]) -> str:
    """Loss and gradients of one batch: :data:`FINE`, or what is not."""
    losses = demo_runner(shape, IMAGES, 'loss')(model)
    loss, _ = model.parse_losses(losses)
    if not loss.isfinite():
        return f'the loss is {float(loss)}'
    loss.backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and not parameter.grad.isfinite().all():
            return f'the gradient of {name} is not finite'
    return FINE


def main(arguments: Sequence[str] | None = None) -> int:
    args = parse_args(arguments)
    logging.disable(logging.WARNING)  # every initialised weight is logged
    if args.memory_limit:
        limit = int(args.memory_limit * 1024**3)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    args.folder.mkdir(parents=True, exist_ok=True)
    if args.step == 'prune':
        result = prune(args.config, args.folder)
    else:
        result = check(args.folder)
    return int('error' in result)


if __name__ == '__main__':
    sys.exit(main())
