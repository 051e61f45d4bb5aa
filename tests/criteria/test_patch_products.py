"""Sums of products of patches, compared with patches that are made."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import nn
from torch.nn.functional import unfold

from mmgfp.criteria import layer_sums, patch_products
from mmgfp.criteria.layer_sums import LayerSums
from mmgfp.criteria.patch_products import channel_order, has_products

KINDS = [
    (kernel, dilation, groups)
    for kernel, dilation, groups in product(
        ((3, 3), (3, 1), (1, 3)), ((1, 1), (2, 2), (1, 3)), (1, 2, 4)
    )
]


@pytest.mark.parametrize('kernel, dilation, groups', KINDS)
@pytest.mark.parametrize('size', [(5, 7), (1, 1), (2, 3), (1, 4), (9, 2)])
@pytest.mark.parametrize('images_at_once', [1, 3])
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
    far = [2 * d * (k // 2) for k, d in zip(kernel, dilation)]
    padded = 4 * (size[0] + far[0]) * (size[1] + far[1])
    monkeypatch.setattr(patch_products, 'BLOCK', images_at_once * padded)
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


@pytest.mark.parametrize('size', [(1, 1), (2, 3), (4, 5), (16, 16)])
@pytest.mark.parametrize('dilation', [1, 3])
def test_small_images_have_patches(size, dilation, monkeypatch):
    """Sums over calls of all sizes, as with levels of a pyramid."""
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 6, 3, padding=dilation, dilation=dilation).double()
    taken = []
    real = layer_sums.patch_products

    def products(module, source):
        taken.append(tuple(source.shape[-2:]))
        return real(module, source)

    monkeypatch.setattr(layer_sums, 'patch_products', products)
    found = LayerSums.zeros([conv], 1000)
    expected, rows = 0.0, 0
    for shape in (size, (16, 16)):
        x = torch.randn(3, 4, *shape, dtype=torch.float64)
        found.add(conv, x, torch.zeros_like(conv(x)))
        patches = unfold(x, 3, dilation, dilation).transpose(1, 2)
        ones = torch.ones_like(patches[..., :1])
        patches = torch.cat([patches, ones], 2).flatten(0, 1)
        expected = expected + patches.T @ patches
        rows += len(patches)
    inputs, _ = found.factors()
    torch.testing.assert_close(inputs.blocks[0][0], expected)
    diagonal, _ = found.diagonals()
    torch.testing.assert_close(diagonal.values[0], expected.diagonal())
    assert found.rows == rows
    assert taken == [(16, 16)] * (1 + (size == (16, 16)))


def test_squares_are_not_negative():
    """Here the border has all but rounding errors of the sum."""
    torch.manual_seed(0)
    conv = nn.Conv2d(8, 8, 3, padding=1)
    x = torch.randn(4, 8, 12, 12) * 1e-6
    x[..., 0] = torch.randn(4, 8, 12)
    ((products, _, _),) = patch_products.patch_products(conv, x)
    assert (products.diagonal(0, 1, 2) >= 0).all()


@pytest.mark.parametrize(
    'changes, expected',
    [
        (dict(padding=(0, 0)), False),
        (dict(padding=(2, 2), dilation=(2, 2)), True),
        (dict(stride=(2, 2)), False),
        (dict(padding='same'), True),
        (dict(padding='valid'), False),
    ],
)
def test_layers_that_were_changed(changes, expected):
    """Such as a backbone that is dilated; a forward uses the attributes."""
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 6, 3, padding=1)
    vars(conv).update(changes)
    assert has_products(conv) == expected
    x = torch.randn(8, 4, 16, 16, dtype=torch.float64)
    out = conv.double()(x)
    found = LayerSums.zeros([conv], 1000)
    found.add(conv, x, torch.ones_like(out))
    assert found.rows == out[:, 0].numel()
    padding = {'same': 1, 'valid': 0}.get(conv.padding, conv.padding)
    patches = unfold(x, 3, conv.dilation, padding, conv.stride)
    rows = patches.transpose(1, 2).flatten(0, 1)
    inputs, _ = found.factors()
    torch.testing.assert_close(inputs.blocks[0][0, :-1, :-1], rows.T @ rows)
    diagonals = LayerSums.zeros([conv], None)
    diagonals.add(conv, x, torch.ones_like(out))
    squares = rows.square().sum(0)
    torch.testing.assert_close(diagonals.inputs.values[0, :-1], squares)


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
