"""Sums of products of patches, compared with patches that are made."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import nn
from torch.nn.functional import unfold

from mmgfp.criteria import patch_products
from mmgfp.criteria.patch_products import channel_order, has_products

KINDS = [
    (kernel, dilation, groups)
    for kernel, dilation, groups in product(
        ((3, 3), (3, 1), (1, 3)), ((1, 1), (2, 2), (1, 3)), (1, 2, 4)
    )
]


@pytest.mark.parametrize('kernel, dilation, groups', KINDS)
@pytest.mark.parametrize('size', [(5, 7), (1, 1), (2, 3), (1, 4), (9, 2)])
@pytest.mark.parametrize('images_at_once', [1, 2, 3])
def test_equal_to_those_of_patches(
    kernel, dilation, groups, size, images_at_once, monkeypatch
):
    """Also where the image is smaller than the kernel."""
    torch.manual_seed(0)
    padding = tuple(d * (k // 2) for k, d in zip(kernel, dilation))
    conv = nn.Conv2d(
        4, 8, kernel, padding=padding, dilation=dilation, groups=groups
    )
    assert has_products(conv)
    x = torch.randn(3, 4, *size, dtype=torch.float64)
    monkeypatch.setattr(patch_products, 'BLOCK', images_at_once * x[0].numel())
    patches = unfold(x, kernel, dilation, padding)  # (N, C * kernel, L)
    rows = patches.transpose(1, 2).unflatten(2, (groups, -1)).flatten(0, 1)
    expected = torch.einsum('rgi,rgj->gij', rows, rows)
    parts = list(patch_products.patch_products(conv, x))
    assert len(parts) == -(-3 // images_at_once)
    products, sums, counts = zip(*parts)
    order = torch.from_numpy(channel_order(conv))
    found = sum(products)[:, order][:, :, order]
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    found = sum(sums)[:, order]
    torch.testing.assert_close(found, rows.sum(0), rtol=1e-12, atol=1e-12)
    assert sum(counts) == len(rows)


def test_a_single_image_in_half_precision():
    conv = nn.Conv2d(2, 3, 3, padding='same')
    x = torch.randn(2, 4, 5).bfloat16()
    (alone,) = patch_products.patch_products(conv, x)
    (batch,) = patch_products.patch_products(conv, x[None].float())
    assert alone[0].dtype == torch.float32
    assert alone[0].equal(batch[0]) and alone[1].equal(batch[1])
    assert alone[2] == batch[2] == 20


@pytest.mark.parametrize(
    'layer, expected',
    [
        (nn.Conv2d(4, 4, 3, padding=1), True),
        (nn.Conv2d(4, 4, 3, padding='same', dilation=2), True),
        (nn.Conv2d(4, 4, (1, 3), padding=(0, 1)), True),
        (nn.Conv2d(4, 4, (1, 3), padding=(1, 1)), False),
        (nn.Conv2d(4, 4, 3), False),
        (nn.Conv2d(4, 4, 3, padding=1, stride=2), False),
        (nn.Conv2d(4, 4, 3, padding=1, stride=(1, 2)), False),
        (nn.Conv2d(4, 4, 3, padding=2), False),
        (nn.Conv2d(4, 4, 3, padding=1, dilation=2), False),
        (nn.Conv2d(4, 4, 3, padding=1, padding_mode='reflect'), False),
        (nn.Conv2d(4, 4, 5, padding=2), False),
        (nn.Conv2d(4, 4, (3, 5), padding=(1, 2)), False),
        (nn.Conv2d(4, 4, 1), False),
        (nn.Conv1d(4, 4, 3, padding=1), False),
        (nn.ConvTranspose2d(4, 4, 3, padding=1), False),
        (nn.Linear(4, 4), False),
    ],
)
def test_which_layers(layer, expected):
    assert has_products(layer) == expected
