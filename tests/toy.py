"""A small model, data set and config that run in a real mmengine runner.

Imported by tests and, through ``custom_imports``, by the processes they
start.
"""

from __future__ import annotations

import json
import os
import random
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.registry import (
    DATASETS,
    HOOKS,
    METRICS,
    MODELS,
    OPTIM_WRAPPER_CONSTRUCTORS,
    OPTIM_WRAPPERS,
    OPTIMIZERS,
)
from mmengine.runner import Runner
from stack import loss_scaler
from torch import nn
from torch.nn.functional import cross_entropy, relu, softplus
from torch.utils.data import Dataset

from mmgfp import FisherPruningHook
from mmgfp.engine.steps import StepGuard
from mmgfp.libraries.models import unwrap
from mmgfp.utils.trees import tree_leaves

CLASSES = tuple('abcde')


@MODELS.register_module(force=True)
class ToyClassifier(BaseModel):
    """Residual block with a depthwise convolution; GN in groups of two."""

    def __init__(
        self,
        norm: str = 'GN',
        dropout: float = 0.0,
        width: int = 12,
        classes: int | None = None,
        data_preprocessor: Any = None,
        init_cfg: Any = None,
    ) -> None:
        super().__init__(data_preprocessor, init_cfg)

        def make(channels: int) -> nn.Module:
            if norm == 'BN':
                return nn.BatchNorm2d(channels)
            return nn.GroupNorm(channels // 2, channels)

        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm0 = make(8)
        self.conv1 = nn.Conv2d(8, width, 3, padding=1)
        self.norm1 = make(width)
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.conv2 = nn.Conv2d(width, 8, 1)
        self.drop = nn.Dropout(dropout)
        self.head = nn.Linear(8, classes or len(CLASSES))

    def forward(
        self,
        inputs: torch.Tensor,
        labels: torch.Tensor | None = None,
        factor: torch.Tensor | None = None,
        mode: str = 'tensor',
    ) -> Any:
        x = relu(self.norm0(self.stem(inputs)))
        y = relu(self.norm1(self.conv1(x)))
        x = relu(x + self.conv2(self.depthwise(y)))
        scores = self.head(self.drop(x.mean((2, 3))))
        if mode == 'loss':
            loss = cross_entropy(scores, labels, reduction='none')
            return dict(loss=(loss * factor).mean())
        if mode == 'predict':
            return [
                dict(scores=s, label=y)
                for s, y in zip(scores, labels, strict=True)
            ]
        return scores


@MODELS.register_module(force=True)
class Skipping(ToyClassifier):
    """Leaves the branch out where most of the images are dark."""

    def forward(self, inputs, labels=None, factor=None, mode='tensor'):
        x = relu(self.norm0(self.stem(inputs)))
        if mode != 'loss' or inputs.mean() > 1:
            y = relu(self.norm1(self.conv1(x)))
            x = relu(x + self.conv2(self.depthwise(y)))
        scores = self.head(x.mean((2, 3)))
        if mode == 'loss':
            return dict(loss=cross_entropy(scores, labels))
        return scores


@MODELS.register_module(force=True)
class Unprunable(BaseModel):
    """Nothing between the image and the output can go."""

    def __init__(self, data_preprocessor: Any = None) -> None:
        super().__init__(data_preprocessor)
        self.only = nn.Conv2d(3, len(CLASSES), 3)

    def forward(self, inputs, labels=None, factor=None, mode='tensor'):
        scores = self.only(inputs).mean((2, 3))
        if mode == 'loss':
            return dict(loss=cross_entropy(scores, labels))
        return scores


@MODELS.register_module(force=True)
class FixedSize(BaseModel):
    """Runs on images of one size only."""

    def __init__(self, data_preprocessor: Any = None) -> None:
        super().__init__(data_preprocessor)
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.fc = nn.Linear(4 * 8 * 8, len(CLASSES))

    def forward(self, inputs, labels=None, factor=None, mode='tensor'):
        scores = self.fc(self.conv(inputs).flatten(1))
        if mode == 'loss':
            return dict(loss=cross_entropy(scores, labels))
        return scores


@MODELS.register_module(force=True)
class Necked(BaseModel):
    """A backbone, a neck and a head."""

    def __init__(self, data_preprocessor: Any = None) -> None:
        super().__init__(data_preprocessor)
        self.backbone = nn.Sequential(
            nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)),
            nn.ReLU(),
            nn.Sequential(nn.Conv2d(8, 10, 3, padding=1), nn.BatchNorm2d(10)),
            nn.ReLU(),
        )
        self.neck = nn.Linear(10, 12)
        self.head = nn.Linear(12, len(CLASSES))

    def forward(self, inputs, labels=None, factor=None, mode='tensor'):
        features = self.backbone(inputs).mean((2, 3))
        scores = self.head(relu(self.neck(features)))
        if mode == 'loss':
            loss = cross_entropy(scores, labels, reduction='none')
            return dict(loss=(loss * factor).mean())
        return scores


@MODELS.register_module(force=True)
class ToyGAN(BaseModel):
    """A generator, and a discriminator that only training runs.

    Args:
        every (int): The generator is trained in every so many iterations.
    """

    def __init__(self, every: int = 1, data_preprocessor: Any = None) -> None:
        super().__init__(data_preprocessor)
        self.every = every
        self.register_buffer('iteration', torch.zeros((), dtype=torch.long))
        self.generator = nn.Sequential(
            nn.Conv2d(3, 10, 3, padding=1),
            nn.BatchNorm2d(10),
            nn.ReLU(),
            nn.Conv2d(10, 12, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(12, 3, 3, padding=1),
        )
        self.discriminator = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Flatten(),
            nn.Linear(128, 1),
        )

    def forward(self, inputs, labels=None, factor=None, mode='tensor'):
        return self.generator(inputs)

    def train_step(self, data: dict, optim_wrapper: Any) -> dict:
        real, factor = data['inputs'], data['factor'].mean()
        judge = self.discriminator
        fake = self.generator(torch.rand_like(real))
        loss = softplus(-judge(real)) + softplus(judge(fake.detach()))
        optim_wrapper['discriminator'].update_params(loss.mean())
        self.iteration += 1
        if self.iteration % self.every == 0:
            judge.requires_grad_(False)
            loss = softplus(-judge(fake)).mean() * factor
            optim_wrapper['generator'].update_params(loss)
            judge.requires_grad_(True)
        return dict(loss=loss.mean())


@OPTIM_WRAPPER_CONSTRUCTORS.register_module(force=True)
class OneEach:
    """An optimiser for each part of the network that the config names."""

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: Any) -> None:
        self.parts = optim_wrapper_cfg

    def __call__(self, model: nn.Module) -> OptimWrapperDict:
        wrappers = {}
        for name, part in self.parts.items():
            parameters = getattr(model, name).parameters()
            optimizer = dict(part['optimizer'], params=parameters)
            wrapper = dict(dict(type='OptimWrapper'), **part)
            wrapper['optimizer'] = OPTIMIZERS.build(optimizer)
            wrappers[name] = OPTIM_WRAPPERS.build(wrapper)
        return OptimWrapperDict(**wrappers)


@DATASETS.register_module(force=True)
class ToyImages(Dataset):
    """Noise whose brightness tells the class, changed anew at every look.

    Args:
        size (int): Number of images.
        augment (bool): Draw from the generators of python, numpy and torch.
        factors (dict): Index -> what the loss of that image is multiplied
            with.
        broken (Sequence[int]): Images that hold NaN.
    """

    METAINFO: ClassVar = dict(classes=CLASSES)

    def __init__(
        self,
        size: int = 32,
        augment: bool = False,
        factors: Mapping[str, float] | None = None,
        broken: tuple[int, ...] = (),
    ) -> None:
        generator = torch.Generator().manual_seed(1)
        self.labels = torch.arange(size) % len(CLASSES)
        self.images = torch.randn(size, 3, 8, 8, generator=generator)
        self.images += 0.5 * self.labels[:, None, None, None]
        self.images[list(broken)] = float('nan')
        self.augment = augment
        self.factors = {int(k): float(v) for k, v in (factors or {}).items()}

    @property
    def metainfo(self) -> dict:
        return self.METAINFO

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> dict:
        image = self.images[i]
        if self.augment:
            image = image * (1 + 0.1 * random.random())
            image = image + 0.1 * float(np.random.randn())
            image = image + 0.1 * torch.randn(image.shape)
        return dict(
            inputs=image,
            labels=self.labels[i],
            factor=torch.tensor(self.factors.get(i, 1.0)),
        )


@METRICS.register_module(force=True)
class ToyAccuracy(BaseMetric):
    default_prefix = 'toy'

    def process(self, data_batch: Any, data_samples: Any) -> None:
        self.results += [
            dict(
                right=bool(s['scores'].argmax() == s['label']),
                scores=s['scores'].tolist(),
            )
            for s in data_samples
        ]

    def compute_metrics(self, results: list) -> dict:
        scores = torch.tensor([r['scores'] for r in results])
        return dict(
            accuracy=float(np.mean([r['right'] for r in results])),
            checksum=float(scores.double().abs().sum()),
        )


@HOOKS.register_module(force=True)
class StructureLog(Hook):
    """Writes what is left after every removal: the channels, in order."""

    priority = 'VERY_LOW'

    def before_train(self, runner: Runner) -> None:
        self.last = structure_of(runner)

    def after_train_iter(self, runner, *args: Any, **kwargs: Any) -> None:
        now = structure_of(runner)
        if now != self.last:
            self.last = now
            rank = os.environ.get('RANK', '0')
            path = Path(runner.work_dir, f'removals_{rank}.jsonl')
            with path.open('a') as file:
                json.dump(dict(iter=runner.iter + 1, left=now), file)
                file.write('\n')


@HOOKS.register_module(force=True)
class Stop(Hook):
    """Ends the process as if the power went, or raises KeyboardInterrupt.

    With ``hang`` it neither ends nor goes on.
    """

    # before anything else sees the iteration
    priority = 'HIGHEST'

    def __init__(
        self,
        iteration: int,
        kill: bool = False,
        rank: int | None = None,
        hang: bool = False,
    ) -> None:
        self.iteration, self.kill, self.rank = iteration, kill, rank
        self.hang = hang

    def before_train_iter(self, runner, *args: Any, **kwargs: Any) -> None:
        mine = self.rank in (None, runner.rank)
        if mine and runner.iter == self.iteration:
            if self.kill:
                os.kill(os.getpid(), 9)
            while self.hang:
                time.sleep(1)
            raise KeyboardInterrupt


@HOOKS.register_module(force=True)
class SaveOften(Hook):
    """Saves in the middle of epochs, as hooks of users do."""

    priority = 'VERY_LOW'

    def __init__(self, interval: int) -> None:
        self.interval = interval

    def after_train_iter(self, runner, *args: Any, **kwargs: Any) -> None:
        if self.every_n_train_iters(runner, self.interval):
            name = f'often_{runner.iter + 1}.pth'
            runner.save_checkpoint(runner.work_dir, name, by_epoch=False)


@HOOKS.register_module(force=True)
class FullDisk(Hook):
    """Lets checkpoints of saved ratios fail in the middle, on this process."""

    def before_train(self, runner: Runner) -> None:
        real = torch.save

        def save(what: Any, path: Any, *args: Any, **kwargs: Any) -> None:
            if '.pth.partial' in str(path):
                Path(path).write_bytes(b'half')
                raise OSError(28, 'No space left on device')
            real(what, path, *args, **kwargs)

        torch.save = save


@HOOKS.register_module(force=True)
class Disturb(Hook):
    """Turns the scores of one rank around before they are compared."""

    priority = 'HIGHEST'

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def before_train_iter(self, runner, *args: Any, **kwargs: Any) -> None:
        if runner.rank == self.rank:
            criterion = pruning_hook(runner).pruner.criterion
            criterion.scores = lambda there: np.arange(len(there), 0, -1.0)


@HOOKS.register_module(force=True)
class Freeze(Hook):
    """Freezes a part of the model from one iteration to another."""

    def __init__(self, part: str, begin: int, end: int = 10**9) -> None:
        self.part, self.begin, self.end = part, begin, end

    def before_train_iter(self, runner, *args: Any, **kwargs: Any) -> None:
        frozen = self.begin <= runner.iter < self.end
        unwrap(runner.model).get_submodule(self.part).requires_grad_(
            not frozen
        )


@HOOKS.register_module(force=True)
class NeverWait(Hook):
    """Guards do not wait to know whether a batch is bad, as on a GPU."""

    priority = 'HIGHEST'

    def before_run(self, runner: Runner) -> None:
        StepGuard.__init__.__defaults__ = (False,)


@HOOKS.register_module(force=True)
class Overflow(Hook):
    """Scores of one rank are infinite in some iterations."""

    priority = 'HIGHEST'

    def __init__(self, rank: int, iterations: Sequence[int]) -> None:
        self.rank, self.iterations = rank, iterations

    def after_train_iter(self, runner, *args: Any, **kwargs: Any) -> None:
        if runner.rank == self.rank and runner.iter in self.iterations:
            pruning_hook(runner).pruner.criterion._taps.buffer.fill_(
                float('inf')
            )


@HOOKS.register_module(force=True)
class SaveOutputs(Hook):
    """Writes what the model makes of fixed input when it has been saved."""

    priority = 'VERY_LOW'

    def __init__(self, checkpoint: str, shape: tuple[int, int]) -> None:
        self.checkpoint, self.shape = checkpoint, shape

    def after_train_iter(self, runner, *args: Any, **kwargs: Any) -> None:
        folder = Path(runner.work_dir)
        path = folder / 'outputs.pth'
        if (folder / self.checkpoint).exists() and not path.exists():
            torch.save(raw_outputs(runner.model, self.shape), path)


@OPTIM_WRAPPERS.register_module(force=True)
class CpuAmpOptimWrapper(OptimWrapper):
    """Mixed precision as mmengine does it, where there is no GPU."""

    def __init__(self, init_scale: float = 1024.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.loss_scaler = loss_scaler(init_scale)

    def backward(self, loss: torch.Tensor, **kwargs: Any) -> None:
        self.loss_scaler.scale(loss).backward(**kwargs)
        self._inner_count += 1

    def step(self, **kwargs: Any) -> None:
        self.loss_scaler.step(self.optimizer, **kwargs)
        self.loss_scaler.update()

    @contextmanager
    def optim_context(self, model: nn.Module):
        with super().optim_context(model), torch.autocast('cpu'):
            yield


def raw_outputs(
    model: nn.Module, shape: tuple[int, int], *samples: Any
) -> list:
    """Tensors that a model returns for one fixed image, in eval mode."""
    training = model.training
    model.eval()
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, 3, *shape, generator=generator)
    with torch.no_grad():
        outputs = tree_leaves(model(image, *samples, mode='tensor'))
    model.train(training)
    return [t for t in outputs if isinstance(t, torch.Tensor)]


def structure_of(runner: Runner) -> dict:
    return pruning_hook(runner).pruner.net.structure().to_dict()['tensors']


def pruning_hook(runner: Runner) -> FisherPruningHook:
    (hook,) = [h for h in runner.hooks if isinstance(h, FisherPruningHook)]
    return hook


def load(path: str | Path) -> dict:
    """A checkpoint of this test, whatever mmengine put into it."""
    return torch.load(path, map_location='cpu', weights_only=False)


def removals(work_dir: str | Path, rank: int = 0) -> list[dict]:
    path = Path(work_dir, f'removals_{rank}.jsonl')
    return [json.loads(line) for line in path.read_text().splitlines()]


def loader(batch_size: int = 8, shuffle: bool = True, **dataset: Any) -> dict:
    return dict(
        dataset=dict(type='ToyImages', **dataset),
        batch_size=batch_size,
        num_workers=0,
        sampler=dict(type='DefaultSampler', shuffle=shuffle),
        collate_fn=dict(type='default_collate'),
    )


def make_config(
    work_dir: str | Path,
    hook: Mapping[str, Any] | None = None,
    filename: str | None = None,
    **overrides: Any,
) -> Config:
    """A config of 4 iterations per epoch that reaches half the flops."""
    pruning = dict(
        type='mmgfp.FisherPruningHook',
        target=dict(flops=0.5),
        interval=3,
        channels_per_step='auto',
        input_shape=(8, 8),
    )
    pruning.update(hook or {})
    config = dict(
        custom_imports=dict(imports=['mmgfp', 'toy']),
        default_scope='mmengine',
        model=dict(type='ToyClassifier'),
        work_dir=str(work_dir),
        train_dataloader=loader(),
        train_cfg=dict(by_epoch=True, max_epochs=6),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.05, momentum=0.9)),
        custom_hooks=[pruning, dict(type='StructureLog')],
        default_hooks=dict(logger=dict(type='LoggerHook', interval=1)),
        experiment_name=uuid.uuid4().hex,  # mmengine's globals are by name
        randomness=dict(seed=0),
        log_level='WARNING',
    )
    config.update(overrides)
    return Config(config, filename=filename)


def validated(**dataset: Any) -> dict:
    """Settings of a config that also validates and tests."""
    data = loader(shuffle=False, size=10, **dataset)
    return dict(
        val_dataloader=data,
        val_cfg=dict(),
        val_evaluator=dict(type='ToyAccuracy'),
        test_dataloader=data,
        test_cfg=dict(),
        test_evaluator=dict(type='ToyAccuracy'),
    )


def train(*args: Any, **kwargs: Any) -> Runner:
    runner = Runner.from_cfg(make_config(*args, **kwargs))
    runner.train()
    return runner


def write_config(path: Path, work_dir: str | Path, **kwargs: Any) -> Path:
    config = make_config(work_dir, **kwargs)
    config.dump(path)
    return path
