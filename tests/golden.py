"""What pruning removes, kept as a record; run this file to write it anew.

Every network trains a few steps in double precision on made-up images, so
that rounding decides nothing, and is pruned in three steps. Kept are, for
every step, the removals in their order, the numbers of the units and the cost
that is left.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from nets import NETS
from nets import run as run_net
from oracles import randomize
from processes import ROOT
from pruning import pruner_of
from torch import nn

from mmgfp.cost.model import record_calls
from mmgfp.groups import ChannelGroup
from mmgfp.libraries.channel_groups import demo_groups
from mmgfp.libraries.config import load_config
from mmgfp.libraries.forward import demo_runner
from mmgfp.libraries.models import build_model
from mmgfp.tracing.finder import find_groups
from mmgfp.utils.trees import tree_leaves

RECORD = Path(__file__).with_suffix('.json')
CONFIGS = {
    'retinanet': 'quickstart/retinanet_r18_digits.py',
    'fcos': 'quickstart/fcos_r18_digits.py',
    'faster_rcnn': 'quickstart/faster_rcnn_r18_digits.py',
    'resnet18': 'quickstart/resnet18_digits.py',
}
SHAPE = (64, 64)
NORMALIZERS = ('acts', 'flops', 'none')
GOALS = (0.85, 0.7, 0.55)  # remaining share of the flops after each step

# cannot train, or compute in a precision of their own
UNSUITED = {'InPlace', 'Distances', 'Precisions'}

Run = Callable[[nn.Module], Any]


class Recorded:
    """A network, its groups and how it runs."""

    def __init__(self, name: str) -> None:
        self.name = name
        if name in CONFIGS:
            self.run: Run = demo_runner(SHAPE, images=2)
            self.groups = demo_groups(self._build(), SHAPE)
        else:
            self.run = run_net
            self.groups = find_groups(self._build(), run_net, images=2)

    @property
    def prunable(self) -> list[ChannelGroup]:
        return [group for group in self.groups if not group.frozen]

    def _build(self) -> nn.Module:
        if self.name in NETS:
            model = NETS[self.name]()
        else:
            path = ROOT / 'configs' / CONFIGS[self.name]
            config = load_config(path)
            config.model.backbone.init_cfg = None
            model = build_model(config)
        return randomize(model).eval()

    def removals(self, normalize_by: str, cut_to: int) -> dict[str, Any]:
        """Prune a fresh copy of the network in three steps.

        Returns:
            dict: ``steps``: the removals in their order, as number of the
            group and channels, and the cost that is left; ``units``: of each
            group, for every unit the step that removed it, or a dot.
        """
        model = self._build().double()
        for module in model.modules():
            module.register_forward_pre_hook(_in_double)
        calls = record_calls(model, lambda: self.run(model), images=2)
        pruner = pruner_of(
            model, self.groups, calls, normalize_by, cut_to=cut_to
        )
        optimizer = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9)
        pruner.attach()
        model.train()
        names = [group.name for group in pruner.net.units.groups]
        steps = []
        for goal in GOALS:
            for _ in range(2):
                optimizer.zero_grad()
                _loss(self.run(model)).backward()
                pruner.criterion.end_batch()
                optimizer.step()
            removed = pruner.prune(
                lambda n, goal=goal: pruner.net.ratio('flops') <= goal,
                [optimizer],
            )
            cost = {
                metric: round(n) for metric, n in pruner.net.cost().items()
            }
            order = [
                f'{names.index(group)}:{sum(r.channels for r in run)}'
                for group, run in groupby(removed, lambda r: r.group)
            ]
            steps.append({'order': ' '.join(order), 'cost': cost})
        pruner.detach()
        scores = pruner.net.structure().scores
        units = {
            name: ''.join('.' if n < 0 else str(n) for n in group.removed)
            for name, group in scores.groups.items()
        }
        return {'steps': steps, 'units': units}


def _in_double(module: nn.Module, args: tuple) -> tuple:
    """Images and regions come in single precision."""
    return tuple(
        value.double()
        if isinstance(value, torch.Tensor) and value.is_floating_point()
        else value
        for value in args
    )


def _loss(outputs: Any) -> torch.Tensor:
    """Mean squares of all outputs, unequal for their channels."""
    losses = []
    for tensor in tree_leaves(outputs):
        if isinstance(tensor, torch.Tensor) and tensor.requires_grad:
            ramp = torch.linspace(0.5, 1.5, tensor.numel() // len(tensor))
            losses.append((tensor.flatten(1) * ramp.double()).square().mean())
    return torch.stack(losses).sum()


def names() -> list[str]:
    return [*CONFIGS, *(name for name in NETS if name not in UNSUITED)]


def write() -> None:
    """Write the record of all networks."""
    record = {}
    for name in names():
        case = Recorded(name)
        if case.prunable:
            record[name] = {
                normalizer: case.removals(normalizer, cut_to=1)
                for normalizer in NORMALIZERS
            }
            print(name)
    lines = [f'{json.dumps(k)}: {json.dumps(v)}' for k, v in record.items()]
    RECORD.write_text('{\n' + ',\n'.join(lines) + '\n}\n')


if __name__ == '__main__':
    write()
