"""What collecting scores and pruning cost while a network trains.

All that is compared runs in one process, in turn, and is told as a ratio; the
peak of the memory is that of a process of its own.
"""

from __future__ import annotations

import copy
import logging
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from benchmark_baselines import KeepEverything, Reference

from mmgfp.cost.model import record_calls
from mmgfp.cost.turns import in_turn, ratios_to, spread
from mmgfp.engine.steps import StepGuard
from mmgfp.groups import ChannelGroup
from mmgfp.libraries.channel_groups import demo_groups
from mmgfp.libraries.forward import cost_runner, demo_data
from mmgfp.search.prunable import Prunable
from mmgfp.search.pruner import Pruner
from mmgfp.speed.memory import in_own_process, peak_of

# builds models as the sweep over model families does
sys.path.append(str(Path(__file__).resolve().parents[1] / 'zoo'))

from zoo_trial import initial_model, load, untrained_config

Result = dict[str, Any]
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Network:
    """A network and the input that it is measured with.

    Attributes:
        title (str): For people.
        config (str): Short form of its config.
        shape (tuple[int, int]): (H, W) of the images.
        images (int): In a batch.
    """

    title: str
    config: str
    shape: tuple[int, int]
    images: int


def networks(on_gpu: bool) -> dict[str, Network]:
    """What is measured, at a size that the machine can hold."""
    side, images, batch = (
        ((800, 1280), 4, 64) if on_gpu else ((320, 320), 2, 8)
    )
    return {
        'retinanet': Network(
            'RetinaNet-R50',
            'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',
            side,
            images,
        ),
        'fcos': Network(
            'FCOS-R50, GN head',
            'mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py',
            side,
            images,
        ),
        'resnet50': Network(
            'ResNet-50',
            'mmpretrain::resnet/resnet50_8xb32_in1k.py',
            (224, 224),
            batch,
        ),
    }


# -- an iteration ----------------------------------------------------------


class Nothing:
    """Plain training."""

    def start(self) -> None:
        """Nothing."""

    begin = end = stop = start


class Ours:
    """What the hook does in an iteration.

    Args:
        pruner (Pruner): Collects the scores.
        optimizer (Optimizer): Whose steps are watched.
    """

    def __init__(
        self, pruner: Pruner, optimizer: torch.optim.Optimizer
    ) -> None:
        self.pruner, self.optimizer = pruner, optimizer

    def start(self) -> None:
        """Begin to observe."""
        self.pruner.attach()
        self.guard = StepGuard(self.pruner.net.model, [self.optimizer])
        self.pruner.net.masks.on_cut = [self.guard.cut]

    def begin(self) -> None:
        """Before an iteration."""
        self.guard.begin()

    def end(self) -> None:
        """After it."""
        is_finite = self.pruner.criterion.end_batch(
            1.0, self.guard.is_finite()
        )
        self.guard.end_batch(is_finite)

    def stop(self) -> None:
        """Observe no longer."""
        self.pruner.detach()
        self.guard.detach()


class Training:
    """A network in training, and the ways to collect its scores.

    Args:
        network (Network): Which one.
        device (str): Where.
        groups (Sequence[ChannelGroup], optional): If they are known.
        mixed (bool): Mixed precision, on a GPU. Defaults to False.
        cut_to (int): See :class:`Prunable`. Defaults to 1.
    """

    def __init__(
        self,
        network: Network,
        device: str,
        groups: Sequence[ChannelGroup] | None = None,
        mixed: bool = False,
        cut_to: int = 1,
    ) -> None:
        self.device, self.mixed = device, mixed
        logging.disable(logging.WARNING)  # every initialised weight is logged
        config = untrained_config(load(network.config))
        model = initial_model(config, seed=0).to(device)
        self.groups = groups or demo_groups(model, network.shape)
        model.eval()
        calls = record_calls(model, lambda: cost_runner(network.shape)(model))
        self.model = model.train()
        net = Prunable(model, self.groups, calls, cut_to=cut_to)
        self.pruner = Pruner(net)
        self.pruner.detach()  # until it is its turn
        self.optimizer = torch.optim.SGD(
            model.parameters(), lr=1e-6, momentum=0.9, weight_decay=1e-4
        )
        self.batch = demo_data(model, network.shape, network.images, 'loss')
        open_groups = [group for group in self.groups if not group.frozen]
        self.methods: dict[str, Any] = {
            'plain': Nothing(),
            'mmgfp': Ours(self.pruner, self.optimizer),
            'reference': Reference(model, open_groups),
            'kept': KeepEverything(model, open_groups),
        }

    def iteration(self, method: Any) -> float:
        """Seconds of one: forward, backward, step and the method's part."""
        self.wait()
        began = time.perf_counter()
        method.begin()
        with torch.autocast(self.device) if self.mixed else nullcontext():
            losses = self.model(**copy.copy(self.batch))
        loss, _ = self.model.parse_losses(losses)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        method.end()
        self.wait()
        return time.perf_counter() - began

    def wait(self) -> None:
        """For a GPU to finish."""
        if self.device != 'cpu':
            torch.cuda.synchronize()

    def seconds(self, names: Sequence[str], rounds: int) -> Result:
        """Seconds per iteration by method, a list of rounds, in turn."""

        def measure(name: str) -> float:
            method = self.methods[name]
            method.start()
            taken = self.iteration(method)
            method.stop()
            return taken

        return in_turn(measure, names, rounds)


def bytes_of_scores(training: Training) -> int:
    """What scores have to read: the consumers' inputs and their gradients.

    Args:
        training (Training): Is run for an iteration.
    """
    found: list[int] = []

    def count(module: torch.nn.Module, args: tuple) -> None:
        if args[0].requires_grad:
            found.append(2 * args[0].numel() * args[0].element_size())

    groups = [group for group in training.groups if not group.frozen]
    modules = dict(training.model.named_modules())
    handles = [
        modules[name].register_forward_pre_hook(count)
        for name in {tap.module for group in groups for tap in group.taps}
    ]
    training.iteration(training.methods['plain'])
    for handle in handles:
        handle.remove()
    return sum(found)


def bandwidth(device: str) -> float:
    """Bytes per second that the machine reads from its memory."""
    numbers = torch.ones(1 << 27, device=device)
    found = []
    for _ in range(6):
        if device != 'cpu':
            torch.cuda.synchronize()
        began = time.perf_counter()
        numbers.sum().item()
        found.append(time.perf_counter() - began)
    return numbers.numel() * numbers.element_size() / statistics.median(found)


def ratios(found: Mapping[str, Sequence[float]]) -> Result:
    """Median, least and greatest ratio to plain training, by method."""
    summary = {}
    for name, values in ratios_to(found, 'plain').items():
        ratio = spread(values)
        summary[name] = dict(
            seconds=statistics.median(found[name]),
            ratio=ratio.pop('median'),
            **ratio,
        )
    return summary


# -- memory ----------------------------------------------------------------


def peak_memory(network: Network, device: str, name: str) -> float:
    """Peak of an iteration by one method, in MB, in a process of its own."""
    return in_own_process(_peak_memory, network, device, name)


def _peak_memory(network: Network, device: str, name: str) -> float:
    training = Training(network, device)
    method = training.methods[name]
    method.start()
    training.iteration(method)  # the optimiser's state is there from now on
    return peak_of(lambda: training.iteration(method), device)


# -- groups, pruning steps, a whole phase ------------------------------------


def seconds_for_groups(network: Network, repeats: int) -> list[float]:
    """To find and prove the groups, on one core."""
    with multiprocessing.get_context('spawn').Pool(1) as pool:
        return pool.apply(_seconds_for_groups, (network, repeats))


def _seconds_for_groups(network: Network, repeats: int) -> list[float]:
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    model = initial_model(untrained_config(load(network.config)), seed=0)
    found = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        demo_groups(model, network.shape)
        found.append(time.perf_counter() - began)
    return found[1:]


def pruning_steps(training: Training, count: int) -> list[float]:
    """Seconds to choose and cut out one unit, so many times."""
    method = training.methods['mmgfp']
    method.start()
    training.iteration(method)
    found = []
    for _ in range(count):
        training.wait()
        began = time.perf_counter()
        training.pruner.prune(lambda n: n == 1, [training.optimizer])
        training.wait()
        found.append(time.perf_counter() - began)
        training.iteration(method)
    method.stop()
    return found


def phase(
    network: Network,
    device: str,
    groups: Sequence[ChannelGroup],
    cut_to: int,
    steps: int,
    interval: int,
) -> Result:
    """Seconds to prune to half of the flops in equal amounts.

    ``flops`` is the mean share of the flops in its iterations: what the time
    would go down to if it were all in them.
    """
    training = Training(network, device, groups, cut_to=cut_to)
    method, pruner = training.methods['mmgfp'], training.pruner
    method.start()
    training.iteration(method)
    began, choosing = time.perf_counter(), 0.0
    left = []
    for step in range(1, steps + 1):
        left.append(pruner.net.ratio('flops'))
        for _ in range(interval):
            training.iteration(method)
        goal = 1 - 0.5 * step / steps
        chose = time.perf_counter()
        pruner.prune(
            lambda n, goal=goal: pruner.net.ratio('flops') <= goal,
            [training.optimizer],
        )
        training.wait()
        choosing += time.perf_counter() - chose
    taken = time.perf_counter() - began
    method.stop()
    return dict(
        seconds=taken,
        pruning=choosing,
        cuts=pruner.net.masks.cuts,
        flops=statistics.mean(left),
    )


def after_target(training: Training, rounds: int) -> list[float]:
    """Iterations after observing has ended, over such before it began.

    The network and its input are the same; what differs are traces that the
    hooks may have left.
    """
    fresh = copy.deepcopy(training)
    method, plain = training.methods['mmgfp'], training.methods['plain']
    method.start()
    training.iteration(method)
    method.stop()
    fresh.iteration(plain)
    found = []
    for i in range(rounds):
        pair = [training, fresh] if i % 2 else [fresh, training]
        taken = {id(one): one.iteration(plain) for one in pair}
        found.append(taken[id(training)] / taken[id(fresh)])
    return found


def growth(
    network: Network, device: str, rounds: int, log: Tell
) -> dict[str, list[Result]]:
    """How the cost of scores grows with image, batch and groups."""
    found: dict[str, list[Result]] = dict(side=[], images=[], groups=[])
    sides = (128, 192, 256) if device == 'cpu' else (256, 512, 768, 1024)
    for side in sides:
        log(f'{network.title}: images of {side} pixels')
        smaller = Network(network.title, network.config, (side, side), 2)
        found['side'].append(_point(side, smaller, device, None, rounds))
    for images in (1, 2, 4, 8):
        log(f'{network.title}: batches of {images}')
        small = Network(network.title, network.config, sides[:1] * 2, images)
        found['images'].append(_point(images, small, device, None, rounds))
    small = Network(network.title, network.config, (sides[1],) * 2, 2)
    groups = Training(small, device).groups
    open_groups = [group for group in groups if not group.frozen]
    for quarter in (1, 2, 3, 4):
        count = len(open_groups) * quarter // 4
        log(f'{network.title}: {count} groups')
        some = open_groups[:count]
        found['groups'].append(_point(count, small, device, some, rounds))
    return found


def _point(
    value: int,
    network: Network,
    device: str,
    groups: Sequence[ChannelGroup] | None,
    rounds: int,
) -> Result:
    training = Training(network, device, groups)
    taken = training.seconds(('plain', 'mmgfp'), rounds)
    return dict(value=value, **ratios(taken)['mmgfp'])
