"""Dependence of the features of groups, estimated in each forward.

The features of a group are the inputs of its consumers, to which all of its
layers contribute. A head that runs on several levels of a pyramid has features
of every level. Each image has a row of features ``X_i``. HSIC needs only the
Gram matrix ``X X^T``, a sum over channels, positions, consumers and calls. So
features are not stored.

The dependence of two groups is the Hilbert-Schmidt independence criterion
(HSIC) of their Gram matrices. A Gram matrix needs all pairs of images, which
are available within one forward only. So HSIC is estimated in each forward and
averaged: minibatch CKA (Nguyen et al., ICLR 2021). The estimator is the
unbiased one of Song et al. (JMLR 2012), because the usual one depends on the
number of images in a forward.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..groups import Tap, UnitSpace
from ..rows import Layout, count_images, images_of_rois

# Smallest number of images of a forward for the unbiased estimator.
LEAST_IMAGES = 4

# Features whose variation is below this ratio of their squares count as equal
# for all images: it is the rounding error of single precision.
_SAME = 1e-10


class Features:
    """Observes the inputs of the consumers of groups while a network runs.

    Rows of RoIs are summed per image. Forwards with less than four images,
    and layers whose rows were picked by a mask, are left out.

    Args:
        model (nn.Module): The network.
        units (UnitSpace): Units of its G prunable groups.
    """

    def __init__(self, model: nn.Module, units: UnitSpace) -> None:
        device = next(model.parameters()).device
        groups = len(units.groups)
        # of all forwards; the last element is their images
        self._sums = torch.zeros(
            groups**2 + 1, dtype=torch.float64, device=device
        )
        self._groups = groups
        # of this forward
        self._images: int | None = None
        self._rois: dict[str, Tensor] = {}
        self._grams: dict[int, Tensor] = {}
        taps = [(t, u) for t, u in units.consumers() if _is_known(t.layout)]
        batches = any(tap.layout.batches for tap, _ in taps)

        def begin(module: nn.Module, args: tuple, kwargs: dict) -> None:
            self._count()
            self._images = count_images(args, kwargs, batches)

        modules = dict(model.named_modules())
        self._handles = [
            model.register_forward_pre_hook(begin, with_kwargs=True)
        ]
        for name in {tap.layout.extractor for tap, _ in taps} - {''}:
            self._handles.append(
                modules[name].register_forward_hook(
                    self._watcher(name), with_kwargs=True
                )
            )
        for tap, unit in taps:
            of_group = np.append(units.group_of, -1)[unit]
            self._handles.append(
                modules[tap.module].register_forward_pre_hook(
                    self._observer(tap, of_group)
                )
            )

    def detach(self) -> None:
        """Add the latest forward and stop observing."""
        self._count()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def all_reduce(self, reduce: Callable[[Tensor], None]) -> None:
        """Sum over processes, once.

        Args:
            reduce (Callable): Sums a tensor over processes, in place.
        """
        reduce(self._sums)

    @property
    def images(self) -> int:
        """Returns the number of counted images."""
        return int(self._sums[-1])

    def nhsic(self) -> np.ndarray:
        """Returns the normalised HSIC of all pairs of groups, (G, G).

        1 for equal features, up to rotation and scale, and 0 for independent
        features (linear CKA). NaN for groups that were not read, or whose
        features are equal for all images.
        """
        sums = self._sums[:-1].cpu().numpy().reshape(self._groups, -1)
        norm = np.sqrt(sums.diagonal())
        norm = np.where(norm > 0, norm, np.nan)
        # estimates below 0 are noise of independent features
        return (sums / norm / norm[:, None]).clip(min=0)

    def _watcher(self, name: str) -> Callable:
        def watch(
            module: nn.Module, args: tuple, kwargs: dict, outputs: Any
        ) -> None:
            rois = images_of_rois(args, kwargs, outputs)
            if rois is not None:
                self._rois[name] = rois

        return watch

    def _observer(self, tap: Tap, of_group: np.ndarray) -> Callable:
        """Pre-hook of a consumer; ``of_group`` is (C,), -1 for none."""
        channels = {
            g: torch.from_numpy(np.flatnonzero(of_group == g))
            for g in np.unique(of_group[of_group >= 0]).tolist()
        }

        def observe(module: nn.Module, args: tuple) -> None:
            rows = args[0].detach()
            axes = tap.layout.axis, tap.channel_axis % rows.dim()
            rows = rows.movedim(axes, (0, 1))
            if not rows.numel():  # a forward without RoIs
                return
            features = self._per_image(rows, tap)
            for g, index in channels.items():
                part = features
                if len(index) < features.shape[1]:
                    part = features.index_select(1, index.to(part.device))
                gram = _centred_gram(part)
                known = self._grams.get(g)
                self._grams[g] = gram if known is None else known + gram

        return observe

    def _per_image(self, rows: Tensor, tap: Tap) -> Tensor:
        """Returns features (N, C, ...) of the rows (rows, C, ...) of an input.

        Raises:
            RuntimeError: If the images of the rows are not known.
        """
        layout, images = tap.layout, self._images
        rois = self._rois.get(layout.extractor)
        if images is None or not layout.fits(len(rows), images, rois):
            raise RuntimeError(
                f'the input of {tap.module} has {len(rows)} rows, and the '
                f'network was called on {images} images: expected the layout '
                f'{layout.order!r} of the demo forward'
            )
        if layout.order == 'images':
            return rows
        owners = layout.owners(len(rows), images, rois, rows.device)
        if layout.order == 'rois':  # any number of rows
            sums = rows.new_zeros(images, *rows.shape[1:])
            return sums.index_add_(0, owners, rows)
        together = rows[owners.argsort(stable=True)]
        return together.unflatten(0, (images, -1)).movedim(1, -1)

    def _count(self) -> None:
        """Add the HSIC of all pairs of groups in the latest forward.

        Raises:
            RuntimeError: If features are not finite.
        """
        grams, self._grams, images = self._grams, {}, self._images
        self._images = None
        self._rois.clear()
        if images is None or images < LEAST_IMAGES or not grams:
            return
        centred = torch.zeros(
            self._groups, images**2, dtype=torch.float64, device='cpu'
        )
        for g, gram in grams.items():
            centred[g] = _u_centred(gram.cpu()).flatten()
        if not centred.isfinite().all():
            raise RuntimeError(
                'features of the network are not finite in evaluation mode: '
                'expected a trained network'
            )
        # the mean over pairs of images, for each image
        found = centred @ centred.T / (images - 3)
        new = torch.cat([found.flatten(), found.new_tensor([images])])
        self._sums += new.to(self._sums.device)


def _is_known(layout: Layout) -> bool:
    """Returns whether the images of rows are known without gradients."""
    return layout.order != 'picked'


def _centred_gram(features: Tensor) -> Tensor:
    """Returns the Gram matrix (N, N) of features (N, ...) minus their mean."""
    rows = features.flatten(1)
    rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
    size = rows.square().sum().double()
    rows = rows - rows.mean(0)
    gram = (rows @ rows.T).double()
    return torch.where(gram.trace() <= _SAME * size, 0.0, gram)


def _u_centred(gram: Tensor) -> Tensor:
    """Returns the matrix whose products are unbiased HSIC, up to a factor.

    Szekely and Rizzo's U-centring: rows sum to 0 without the diagonal, which
    is 0. ``<U(K), U(L)> / (n (n - 3))`` is the estimate of Song et al.
    """
    count = len(gram)
    gram = gram - gram.diag().diag()
    rows = gram.sum(0) / (count - 2)
    whole = gram.sum() / (count - 1) / (count - 2)
    gram = gram - rows - rows[:, None] + whole
    return gram - gram.diag().diag()
