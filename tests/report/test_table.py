"""Tables can be read whatever the names of the layers are."""

from __future__ import annotations

import pytest
import torch
from nets import Chain, Net, conv, run
from nets_kernels import Filters, OneNorm
from torch import nn

from mmgfp.commands.groups import flops_shares
from mmgfp.cost.model import count_cost, record_calls
from mmgfp.report.table import TABLE_WIDTH, cost_notes, groups_table, render
from mmgfp.tracing.finder import find_groups


class Inside(nn.Module):
    """A network as a part of another one."""

    def __init__(self, name, net):
        super().__init__()
        self.name = name
        self.add_module(name, net)

    def forward(self, x):
        return getattr(self, self.name)(x)


def test_long_names_leave_room_for_the_verdict():
    model = Chain()
    names = ['backbone', 'stages_of_it', 'blocks_of_stage', 'attention'] * 2
    for name in names[::-1]:
        model = Inside(name, model)
    groups = find_groups(model, lambda m: m(Chain.batch()), 2)
    text = render(groups_table(groups, {}))
    assert max(map(len, text.splitlines())) <= TABLE_WIDTH
    for part in ('reaches an output', '│        8 │', '│ yes '):
        assert part in text, text
    assert '…' not in text
    assert 'conv1' in text


class Distributions(Net):
    """Means of distributions, by a product with a buffer."""

    def __init__(self):
        super().__init__()
        self.conv = conv(3, 8)
        self.head = nn.Module()
        self.head.register_buffer('places', torch.arange(8.0))

    def forward(self, x):
        x = self.conv(x).flatten(2).mT
        return x.softmax(-1) @ self.head.places.view(-1, 1)


@pytest.mark.parametrize('net', [Distributions, Filters, OneNorm])
def test_every_layer_has_a_share_of_the_flops(net):
    """Also those that multiply with a buffer or a computed kernel."""
    model = net().eval()
    groups = find_groups(model, run, 2)
    calls = record_calls(model, lambda: run(model), 2)
    rows = count_cost(model, calls)
    shares = flops_shares(groups, rows)
    assert all(shares[group.name] > 0 for group in groups)
    text = render(groups_table(groups, shares))
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            assert name in text and rows[name]['flops']
    assert '.parametrizations' not in text
    assert not cost_notes(calls, rows['']['flops'])


class Attends(Net):
    """A product of two activations, and a convolution with one of them."""

    def forward(self, x):
        x = self.conv(x).flatten(2)
        mixed = (x @ x.mT).softmax(-1)
        return nn.functional.conv1d(x, mixed.mean(0)[..., None])

    def __init__(self):
        super().__init__()
        self.conv = conv(3, 8, 1)


def test_what_no_weight_does_is_told():
    model = Attends().eval()
    calls = record_calls(model, lambda: run(model), 2)
    rows = count_cost(model, calls)
    fixed = rows['the network itself (computed kernels)']
    assert fixed == dict(flops=256 * 8 * 8, acts=256 * 8, params=0)
    share = 8 / (8 + 3)
    kernels, products = cost_notes(calls, rows['']['flops'])
    assert kernels.startswith(f'{share:.1%} of the flops')
    share = 8 * 8 / (8 * 8 + 8 * 8 + 3 * 8)
    assert f'attention, {share:.1%} of all' in products
