"""A pass over training data without optimiser steps."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from mmengine import dist
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from ..criteria.base import Calibrated, Criterion, Labels
from ..groups import UnitSpace
from ..libraries.forward import unaugmented
from ..libraries.models import unwrap
from ..search.search import FeatureSearch
from ..utils.errors import type_and_line
from ..utils.modes import buffers_kept, modes_kept, training
from ..utils.random_state import random_state, set_random_state
from ..utils.trees import map_tensors
from .progress import duration
from .runner import sum_over_ranks, true_on_all_ranks

# Seconds between lines in the log.
_PAUSE = 30
# What the log of each run said of labels.
_said: WeakKeyDictionary[Runner, str] = WeakKeyDictionary()


def calibrate(
    runner: Runner,
    criterion: Criterion,
    units: UnitSpace,
    layers: Collection[str] | None = None,
) -> None:
    """Let a criterion observe the network on batches of its training data.

    The network is in full precision, without dropout and with fixed batch
    norms; in training mode otherwise for labels of the data set, because
    heads of detectors may compute something else in evaluation mode. Weights,
    buffers, gradients, the train dataloader and random states do not change.
    The sums of the criterion include all processes.

    Args:
        runner (Runner): The runner of the training.
        criterion (Criterion): A :class:`~mmgfp.criteria.base.Calibrated` one;
            observes the pass.
        units (UnitSpace): Units of the network.
        layers (Collection[str], optional): Layers to observe. Defaults to
            those of the units, or to all if there are none.

    Raises:
        ValueError: If there is no batch with a finite loss, or the criterion
            needs labels that the network cannot draw.
    """
    criterion = cast(Calibrated, criterion)
    model = unwrap(runner.model)
    states = random_state()
    criterion.attach(model, units)
    try:
        with (
            modes_kept(model),
            _buffers_of_first(model),
            _frozen(model),
            torch.enable_grad(),
            criterion.observing(layers),
        ):
            used = _pass(runner, model, criterion)
    finally:
        set_random_state(states)
    counted = torch.tensor(float(used), device=next(model.parameters()).device)
    sum_over_ranks(counted)
    if not counted:
        raise ValueError(
            'the calibration pass had no batch with a finite loss: '
            'expected a trained network and a train dataloader with batches'
        )
    criterion.all_reduce(sum_over_ranks)
    if wide := criterion.approximate:
        runner.logger.info(
            f'the measurements of {len(wide)} layers are approximate, because '
            f'they have more inputs or outputs than the limit of '
            f'{type(criterion).__name__}: {", ".join(wide[:5])}'
            f'{", ..." if len(wide) > 5 else ""}'
        )
    if names := criterion.unmeasured():
        runner.logger.warning(
            f'{len(names)} layers were not measured in the calibration pass '
            f'and add nothing to scores: {", ".join(names[:5])}'
            f'{", ..." if len(names) > 5 else ""}. They do not run in the '
            'pass, the loss does not depend on them, or they compute '
            'something else than a convolution or linear layer'
        )


def show_features(
    model: BaseModel,
    loader: DataLoader,
    search: FeatureSearch,
    warn: Callable[[str], object],
) -> None:
    """Let a search observe features of images of the training data.

    The network is in evaluation mode and in full precision. Weights and random
    states do not change. The sums of the search include all processes.

    Args:
        model (BaseModel): The network without wrapper.
        loader (DataLoader): Loader of the images.
        search (FeatureSearch): Observes the pass.
        warn (Callable): Called with a message if there are not enough images.
    """
    states = random_state()
    each = batch_images(loader) * dist.get_world_size()
    number = min(len(loader), math.ceil(search.images / each))
    if number * each < search.images:
        warn(
            f'the search uses {number * each} images instead of '
            f'{search.images}: the data set has no more'
        )
    try:
        with (
            modes_kept(model),
            _buffers_of_first(model),
            torch.no_grad(),
            search.observing(),
            unaugmented(model.data_preprocessor) as preprocess,
        ):
            for data in islice(loader, number):
                # as in training: only then all preprocessors pad images
                data = preprocess(data, True)
                model.eval()._run_forward(data, mode='tensor')
    finally:
        set_random_state(states)
    search.all_reduce(sum_over_ranks)


def _pass(runner: Runner, model: BaseModel, criterion: Calibrated) -> int:
    """Run the pass; returns the number of counted batches."""
    loader = other_loader(runner)
    # the same number in all processes, which agree on each batch
    number = min(criterion.batches, len(loader))
    if number < criterion.batches:
        runner.logger.warning(
            f'calibration with {number} batches instead of '
            f'{criterion.batches}: the data set has no more'
        )
    labels = criterion.fisher
    began = logged = time.time()
    used = 0
    for index, data in enumerate(islice(loader, number)):
        data = _with_gradients(model.data_preprocessor(data, True))
        if labels is None:
            labels, why = _labels(model, data)
            if _said.get(runner) != why:
                _said[runner] = why
                runner.logger.info(f'calibration with {why}')
        with _mode(model, labels):
            loss = (
                _drawn_loss(model, data)
                if labels == 'true'
                else _empirical_loss(model, data)
            )
            valid = true_on_all_ranks(loss.isfinite())
            if valid:
                loss.backward()
        used += int(criterion.end_batch(1.0, valid, true_on_all_ranks))
        # the time that a pass takes is shown soon
        pause = _PAUSE if logged > began else _PAUSE / 6
        if time.time() - logged > pause and index + 1 < number:
            logged = time.time()
            left = (logged - began) / (index + 1) * (number - index - 1)
            runner.logger.info(
                f'calibration: {index + 1} of {number} batches, '
                f'{duration(left)} left'
            )
    runner.logger.info(
        f'calibration: {used} of {number} batches in '
        f'{time.time() - began:.1f} s'
    )
    return used


def other_loader(runner: Runner, least: int = 1) -> DataLoader:
    """Returns another loader of the train data, in a separate order.

    Args:
        runner (Runner): The runner with the data set.
        least (int): Least number of images in a batch. Defaults to 1.
    """
    seed = (runner.seed or 0) + runner.iter
    dataset = runner.train_dataloader.dataset
    return train_loader(runner.cfg, seed, least, dataset)


def train_loader(
    config: Config, seed: int, least: int = 1, dataset: Any = None
) -> DataLoader:
    """Returns a loader of a config's train data.

    Args:
        config (Config): A config with ``train_dataloader``.
        seed (int): Seed of the order.
        least (int): Least number of images in a batch. Defaults to 1.
        dataset (Any): The data set, if it is built already.

    Raises:
        FileNotFoundError: If the data set is not on this machine.
        ValueError: If the config has no train data.
    """
    loader = config.get('train_dataloader')
    if not loader:
        raise ValueError(
            'the config has no train_dataloader, whose images are needed; '
            'expected a dict, also for runners that were given a DataLoader'
        )
    settings = loader.to_dict() if hasattr(loader, 'to_dict') else dict(loader)
    settings = copy.deepcopy(settings)
    if dataset is not None:
        settings['dataset'] = dataset
    settings.pop('persistent_workers', None)
    if least > (settings.get('batch_size') or 1):
        # a small data set may be less than one such batch
        settings.update(batch_size=least, drop_last=False)
    try:
        return Runner.build_dataloader(settings, seed=seed)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f'the data set of train_dataloader is not here: {error}. '
            'Download it, or correct its paths in the config.'
        ) from error


def batch_images(loader: DataLoader) -> int:
    """Returns the number of images of a batch, also of batch samplers."""
    known = loader.batch_size, getattr(loader.batch_sampler, 'batch_size', 0)
    return next((number for number in known if number), 1)


@contextmanager
def _buffers_of_first(model: nn.Module) -> Iterator[None]:
    """Give all processes the statistics of the first inside the context.

    Each process has its own statistics of batch norms, and checkpoints hold
    those of the first: a resumed run would measure something else. All are
    restored afterwards.
    """
    with buffers_kept(model):
        for buffer in model.buffers():
            dist.broadcast(buffer)
        yield


@contextmanager
def _mode(model: nn.Module, labels: Labels) -> Iterator[None]:
    """Set the mode of a loss without dropout and batch statistics."""
    if labels == 'true':
        with modes_kept(model):
            model.eval()
            yield
        return
    with training(model):
        for module in model.modules():
            if isinstance(module, nn.MultiheadAttention):
                module.eval()  # has dropout of its own
        yield


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Disable the gradients of parameters inside the context."""
    trained = [p for p in model.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def _with_gradients(data: Any) -> Any:
    """Returns the batch with images that require gradients."""
    if isinstance(data, Mapping) and 'inputs' in data:
        return {**data, 'inputs': map_tensors(_leaf, data['inputs'])}
    return map_tensors(_leaf, data)


def _leaf(tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point():
        return tensor
    # networks may change their input in place, which leaves do not allow
    return tensor.detach().requires_grad_().clone()


def _labels(model: BaseModel, data: Any) -> tuple[Any, str]:
    """Returns the kind of labels for a network, and a reason for the log."""
    given = 'the labels of the data set'
    if _has_other_labels(data):
        return 'empirical', f'{given}: not every image has one class'
    try:
        with torch.no_grad(), _mode(model, 'true'):
            _class_scores(model, data)
    except _NoClassScoresError:
        return 'empirical', (
            f'{given}: {type(model).__name__} does not classify whole images '
            'into two or more classes'
        )
    except Exception as error:  # the user's code may raise anything
        return 'empirical', f'{given}: {type_and_line(error)}'
    return 'true', 'labels drawn from the predicted class scores'


def _has_other_labels(data: Any) -> bool:
    """Returns whether an image has labels, but not one class.

    Networks with several labels per image return scores of the same form.
    """
    samples = data.get('data_samples') if isinstance(data, Mapping) else None
    expected = 1
    if samples and len(samples) == 1:  # it may have the labels of all images
        expected = len(data.get('inputs', samples))
    for sample in samples or ():
        label = getattr(sample, 'gt_label', None)
        label = getattr(label, 'label', label)  # of MMClassification
        if isinstance(label, Tensor) and (
            label.numel() != expected or label.is_floating_point()
        ):
            return True
    return False


class _NoClassScoresError(ValueError):
    """The outputs of a network are not scores of classes."""


def _class_scores(model: BaseModel, data: Any) -> Tensor:
    """Returns the outputs of the network, (N, classes).

    Raises:
        _NoClassScoresError: If the outputs have another form.
    """
    scores = model._run_forward(data, mode='tensor')
    # with one class, all drawn labels would be this class
    if (
        not isinstance(scores, Tensor)
        or scores.dim() != 2
        or scores.shape[1] < 2
    ):
        raise _NoClassScoresError(
            "fisher='true' draws labels from (N, classes) scores of two or "
            "more classes; with mode='tensor' the outputs of "
            f"{type(model).__name__} have another form. Use fisher='empirical'"
        )
    return scores


def _drawn_loss(model: BaseModel, data: Any) -> Tensor:
    """Returns the cross entropy with labels drawn from the predictions."""
    scores = _class_scores(model, data).float()
    if not scores.isfinite().all():  # the batch is left out
        return scores.new_tensor(float('nan'))
    drawn = torch.multinomial(scores.detach().softmax(1), 1)[:, 0]
    return cross_entropy(scores, drawn)


def _empirical_loss(model: BaseModel, data: Any) -> Tensor:
    loss, _ = model.parse_losses(model._run_forward(data, mode='loss'))
    return loss
