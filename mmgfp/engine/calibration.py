"""A pass over training data that the network does not learn from."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import Any, cast

import torch
from mmengine import dist
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from ..criteria.base import Calibrated, Criterion
from ..groups import UnitSpace
from ..libraries.models import unwrap
from ..search.search import FeatureSearch
from ..utils.errors import type_and_line
from ..utils.modes import modes_kept
from ..utils.random_state import random_state, set_random_state
from ..utils.trees import map_tensors
from .progress import duration
from .runner import sum_over_ranks, true_on_all_ranks

# Seconds between lines in the log.
_PAUSE = 30


def calibrate(runner: Runner, criterion: Criterion, units: UnitSpace) -> None:
    """Let a criterion observe the network on batches of its training data.

    The network is in evaluation mode and in full precision. Weights,
    gradients, the train dataloader and random states stay as they are. The
    criterion holds what all processes have seen.

    Args:
        runner (Runner): Whose network trains.
        criterion (Criterion): A :class:`~mmgfp.criteria.base.Calibrated` one;
            observes the pass.
        units (UnitSpace): Of the network.

    Raises:
        ValueError: If there is no batch with a finite loss, or the criterion
            wants labels that the network cannot draw.
    """
    criterion = cast(Calibrated, criterion)
    model = unwrap(runner.model)
    states = random_state()
    criterion.attach(model, units)
    try:
        with (
            modes_kept(model),
            _frozen(model),
            torch.enable_grad(),
            criterion.observing(),
        ):
            used = _pass(runner, model.eval(), criterion)
    finally:
        set_random_state(states)
    counted = torch.tensor(float(used), device=next(model.parameters()).device)
    sum_over_ranks(counted)
    if not counted:
        raise ValueError(
            'the calibration pass has seen no batch with a finite loss: '
            'expected a trained network and a train dataloader with batches'
        )
    criterion.all_reduce(sum_over_ranks)
    if names := criterion.unmeasured():
        runner.logger.warning(
            f'{len(names)} layers were not measured in the calibration pass '
            f'and add nothing to scores: {", ".join(names[:5])}'
            f'{", ..." if len(names) > 5 else ""}. They do not run in it, or '
            'are no convolutions or linear layers with weights of their own'
        )


def show_features(
    model: BaseModel,
    loader: DataLoader,
    search: FeatureSearch,
    warn: Callable[[str], object],
) -> None:
    """Let a search look at features of images of the training data.

    The network is in evaluation mode and in full precision. Weights and random
    states stay as they are. The search holds what all processes have seen.

    Args:
        model (BaseModel): The network, bare.
        loader (DataLoader): Of the images.
        search (FeatureSearch): Observes the pass.
        warn (Callable): Called with a message if there are not enough images.
    """
    states = random_state()
    each = (loader.batch_size or 1) * dist.get_world_size()
    number = min(len(loader), math.ceil(search.images / each))
    if number * each < search.images:
        warn(
            f'the search looks at {number * each} images instead of '
            f'{search.images}: the data set has no more'
        )
    try:
        with modes_kept(model), torch.no_grad(), search.observing():
            for data in islice(loader, number):
                data = model.eval().data_preprocessor(data, False)
                model._run_forward(data, mode='tensor')
    finally:
        set_random_state(states)
    search.all_reduce(sum_over_ranks)


def _pass(runner: Runner, model: BaseModel, criterion: Calibrated) -> int:
    """Batches of this process that were counted."""
    loader = other_loader(runner)
    # as many in all processes: they agree on each batch
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
            runner.logger.info(f'calibration with {labels} labels{why}')
        loss = (
            _drawn_loss(model, data)
            if labels == 'true'
            else _empirical_loss(model, data)
        )
        valid = true_on_all_ranks(loss.isfinite())
        if valid:
            loss.backward()
        used += int(criterion.end_batch(1.0, valid, true_on_all_ranks))
        if time.time() - logged > _PAUSE:
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
    """Returns another loader of the train data, in an order of its own.

    Args:
        runner (Runner): Whose data set it is.
        least (int): Images in a batch, if training has less. Defaults to 1.
    """
    seed = (runner.seed or 0) + runner.iter
    dataset = runner.train_dataloader.dataset
    return train_loader(runner.cfg, seed, least, dataset)


def train_loader(
    config: Config, seed: int, least: int = 1, dataset: Any = None
) -> DataLoader:
    """Returns a loader of a config's train data.

    Args:
        config (Config): With ``train_dataloader``.
        seed (int): Of the order.
        least (int): Images in a batch, if training has less. Defaults to 1.
        dataset (Any): If it is built already.

    Raises:
        FileNotFoundError: If the data set is not on this machine.
        ValueError: If the config has no train data.
    """
    loader = config.get('train_dataloader')
    if not loader:
        raise ValueError(
            'the config has no train_dataloader, whose images are needed'
        )
    settings = loader.to_dict() if hasattr(loader, 'to_dict') else dict(loader)
    settings = copy.deepcopy(settings)
    if dataset is not None:
        settings['dataset'] = dataset
    settings.pop('persistent_workers', None)
    if least > (settings.get('batch_size') or 1):
        settings['batch_size'] = least
    try:
        return Runner.build_dataloader(settings, seed=seed)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f'the data set of train_dataloader is not here: {error}. '
            'Download it, or correct its paths in the config.'
        ) from error


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """No gradients of parameters: nothing learns from them."""
    trained = [p for p in model.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def _with_gradients(data: Any) -> Any:
    """The batch with images that gradients reach, for they start there."""
    if isinstance(data, Mapping) and 'inputs' in data:
        return {**data, 'inputs': map_tensors(_leaf, data['inputs'])}
    return map_tensors(_leaf, data)


def _leaf(tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point():
        return tensor
    return tensor.detach().requires_grad_()


def _labels(model: BaseModel, data: Any) -> tuple[Any, str]:
    """Which labels a network allows, and why, for the log."""
    try:
        with torch.no_grad():
            _class_scores(model, data)
    except Exception as error:  # code of others, of any kind
        return 'empirical', f': {type_and_line(error)}'
    return 'true', ', drawn from what the network predicts'


def _class_scores(model: BaseModel, data: Any) -> Tensor:
    """(N, classes) outputs of the network.

    Raises:
        ValueError: If its outputs are something else.
    """
    scores = model._run_forward(data, mode='tensor')
    if not isinstance(scores, Tensor) or scores.dim() != 2:
        raise ValueError(
            "fisher='true' needs a network whose mode='tensor' returns "
            f'(N, classes) scores; {type(model).__name__} returns something '
            "else. Use fisher='empirical'"
        )
    return scores


def _drawn_loss(model: BaseModel, data: Any) -> Tensor:
    """Cross entropy with labels from the network's own distribution."""
    scores = _class_scores(model, data).float()
    drawn = torch.multinomial(scores.detach().softmax(1), 1)[:, 0]
    return cross_entropy(scores, drawn)


def _empirical_loss(model: BaseModel, data: Any) -> Tensor:
    loss, _ = model.parse_losses(model._run_forward(data, mode='loss'))
    return loss
