"""Zeros in weights: where they are zeros of kernels, and where not."""

from __future__ import annotations

import zlib

import pytest
import torch
from torch import nn
from torch.nn.functional import conv2d

from mmgfp.cost.model import count_cost, record_calls
from mmgfp.cost.zeros import (
    file_sizes,
    nonzero_cost,
    weights_that_carry_zeros,
)


class Standardised(nn.Conv2d):
    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return conv2d(x, weight, self.bias, padding=1)


def make_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.Conv2d(6, 6, 3, padding=1, groups=3, bias=False),
        nn.ConvTranspose2d(6, 4, 2, stride=2),
        Standardised(4, 4, 3),
        nn.utils.weight_norm(nn.Conv2d(4, 3, 1)),
        nn.Flatten(2),
        nn.Linear(256, 5),
        nn.MultiheadAttention(5, 1, batch_first=True),
    ).eval()


def run(model: nn.Module):
    x = torch.ones(1, 3, 8, 8)
    for layer in model[:-1]:
        x = layer(x)
    return model[-1](x, x, x)


def record(model: nn.Module):
    return record_calls(model, lambda: run(model), zeros=True)


def test_a_network_without_zeros_costs_what_it_costs():
    model = make_model()
    for parameter in model.parameters():
        nn.init.uniform_(parameter, 0.1, 1.0)
    calls = record(model)
    total = count_cost(model, calls)['']
    found = nonzero_cost(model, calls)
    assert found == {k: total[k] for k in ('flops', 'params')}
    assert record_calls(model, lambda: run(model)).nonzero == {}


def test_zeros_save_multiply_accumulates_and_parameters():
    model = make_model()
    for parameter in model.parameters():
        nn.init.uniform_(parameter, 0.1, 1.0)
    before = nonzero_cost(model, record(model))
    model[0].weight.data[0, 0] = 0  # 9 elements, 64 positions
    model[2].weight.data[3, 1, 0] = 0  # 3 elements, 64 positions
    model[3].weight.data[:, 1] = 0  # 24 elements, 64 positions
    model[4].weight.data[0, 0] = 0  # standardised: none at run time
    model[7].weight.data[0, :7] = 0  # 7 elements, 3 rows
    model[0].bias.data[0] = 0
    after = nonzero_cost(model, record(model))
    assert before['flops'] - after['flops'] == (9 + 3 + 24) * 64 + 7 * 3
    assert before['params'] - after['params'] == 9 + 3 + 24 + 9 + 7 + 1


@pytest.mark.filterwarnings('ignore:.*weight_norm')
def test_weights_that_carry_zeros():
    model = make_model()
    state = {n: t.clone() for n, t in model.state_dict().items()}
    carry, others = weights_that_carry_zeros(model, record(model), run)
    assert carry == [
        *('0.weight', '2.weight', '3.weight', '5.weight_v', '7.weight'),
        *('8.in_proj_weight', '8.out_proj.weight'),
    ]
    assert others == ['4.weight']
    for name, tensor in model.state_dict().items():
        assert tensor.equal(state[name])


def test_zeros_compress(tmp_path):
    noise = torch.randint(256, (2**20 + 7,), dtype=torch.uint8)
    path = tmp_path / 'file'
    for content in (noise, torch.zeros_like(noise)):
        path.write_bytes(content.numpy().tobytes())
        size, compressed = file_sizes(path)
        assert size == len(noise)
        assert compressed == len(zlib.compress(path.read_bytes()))
