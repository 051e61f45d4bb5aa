"""Torch-Pruning inside the same training loop.

Its own grouping, importance and surgery; the pace and the target are those of
mmgfp's hook: equal shares of the flops every few iterations.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch_pruning
from mmengine.device import get_device
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import nn

from mmgfp.cost.model import count_cost, record_calls
from mmgfp.libraries.forward import cost_runner

# Its pruner removes shares of the channels, so finely that the flops follow.
STEPS = 500


@HOOKS.register_module()
class TorchPruningHook(Hook):
    """Prunes with Torch-Pruning while a runner trains.

    Args:
        importance (Mapping): Class in ``torch_pruning.importance`` and its
            arguments.
        target (Mapping): ``dict(flops=0.5)``.
        input_shape (Sequence[int]): (H, W) that flops are counted at.
        interval (int): Iterations per pruning step.
    """

    priority = 'ABOVE_NORMAL'

    def __init__(
        self,
        importance: Mapping[str, Any],
        target: Mapping[str, float],
        input_shape: Sequence[int],
        interval: int,
    ) -> None:
        arguments = dict(importance)
        kind = getattr(torch_pruning.importance, arguments.pop('type'))
        self._importance = kind(**arguments)
        self._needs_gradients = isinstance(
            self._importance, torch_pruning.importance.GroupTaylorImportance
        )
        self._target = target['flops']
        self._shape = tuple(input_shape)
        self._interval = interval
        self._batches: list[Any] = []

    def before_train(self, runner: Runner) -> None:
        """Let Torch-Pruning find its groups."""
        model = runner.model
        model.eval()
        last = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
        self._pruner = torch_pruning.pruner.BasePruner(
            model,
            torch.randn(2, 3, *self._shape, device=get_device()),
            importance=self._importance,
            global_pruning=True,
            pruning_ratio=1.0,
            iterative_steps=STEPS,
            ignored_layers=[last],
        )
        model.train()
        self._full = self.flops(model)
        self._ratio = 1.0

    def flops(self, model: nn.Module) -> float:
        """Counted as everywhere in mmgfp."""
        was_training = model.training
        run = cost_runner(self._shape)
        calls = record_calls(model.eval(), lambda: run(model))
        model.train(was_training)
        return count_cost(model, calls)['']['flops']

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Any = None,
    ) -> None:
        """Every few iterations, remove channels down to the line."""
        if self._ratio <= self._target:
            return
        if self._needs_gradients:
            self._batches.append(data_batch)
        if (runner.iter + 1) % self._interval:
            return
        done = (runner.iter + 1) / runner.max_iters
        goal = max(self._target, 1 - (1 - self._target) * done)
        if runner.iter + 1 + self._interval > runner.max_iters:
            goal = self._target  # the last step
        if self._ratio <= goal:
            return
        if self._needs_gradients:
            self._find_gradients(runner)
        momentum = Momentum(runner.model, runner.optim_wrapper.optimizer)
        while self._ratio > goal:
            if self._pruner.current_step == STEPS:
                raise RuntimeError(
                    f'Torch-Pruning has taken all of its {STEPS} steps and '
                    f'left {self._ratio:.3f} of the flops instead of {goal}'
                )
            for group in self._pruner.step(interactive=True):
                momentum.prune(group)
                group.prune()
            self._ratio = self.flops(runner.model) / self._full
        runner.model.zero_grad()
        # it makes new parameters
        settings = runner.cfg.optim_wrapper
        runner.optim_wrapper = runner.build_optim_wrapper(settings)
        momentum.hand_over(runner.optim_wrapper.optimizer)

    def _find_gradients(self, runner: Runner) -> None:
        """Of the mean loss of the batches since the last step."""
        model = runner.model
        model.eval()
        model.zero_grad()
        for batch in self._batches:
            data = model.data_preprocessor(batch, True)
            losses = model(**data, mode='loss')
            (losses['loss'] / len(self._batches)).backward()
        model.train()
        self._batches.clear()


class Momentum:
    """That of SGD, which loses the channels that the network loses.

    Torch-Pruning knows nothing of optimisers. Without this its networks would
    begin anew every few iterations, which mmgfp's do not.

    Args:
        model (nn.Module): Trained by ``optimizer``.
        optimizer (Optimizer): Has made a step.
    """

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer
    ) -> None:
        # copies of the layers whose weights are the momentum of the layers
        self._layers: dict[nn.Module, nn.Module] = {}
        for layer in model.modules():
            weights = dict(layer.named_parameters(recurse=False))
            if weights:
                self._layers[layer] = copied = copy.deepcopy(layer)
                for name, weight in weights.items():
                    kept = optimizer.state[weight]['momentum_buffer']
                    getattr(copied, name).data = kept

    def prune(self, group: torch_pruning.Group) -> None:
        """What is about to happen to the network."""
        for dependency, indices in group:
            layer = dependency.target.module
            if layer in self._layers:
                self._layers[layer] = dependency.handler(
                    self._layers[layer], indices
                )

    def hand_over(self, optimizer: torch.optim.Optimizer) -> None:
        """To the optimiser of the new parameters."""
        for layer, copied in self._layers.items():
            for name, weight in layer.named_parameters(recurse=False):
                kept = getattr(copied, name).detach()
                optimizer.state[weight]['momentum_buffer'] = kept
