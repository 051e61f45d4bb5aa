"""Inputs and output gradients of layers, observed in a calibration pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..rows import count_images
from .layer_rows import computes_as_known

See = Callable[[str, nn.Module, Tensor, Tensor], None]


class LayerTaps:
    """Calls a function for each call of some layers, in the backward pass.

    Args:
        model (nn.Module): The network.
        layers (Mapping[str, nn.Module]): Convolutions and linear layers in it
            (:func:`mmgfp.criteria.layer_rows.is_matrix_layer`), by name.
        see (Callable): Called with name, layer, input and the gradient of the
            loss with respect to the output, both detached.

    Attributes:
        images (int): Number of images in this batch.
        strangers (set[str]): Layers whose result differs from that of their
            PyTorch class; ``see`` is not called for them.
    """

    def __init__(
        self, model: nn.Module, layers: Mapping[str, nn.Module], see: See
    ) -> None:
        self.images = 0
        self.strangers: set[str] = set()
        self._known: set[str] = set()
        self._see = see
        self._handles: list[Any] = [
            model.register_forward_pre_hook(self._count, with_kwargs=True)
        ]
        for name, layer in layers.items():
            self._handles.append(
                layer.register_forward_hook(self._observer(name))
            )

    def detach(self) -> None:
        """Stop observing."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _count(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        if torch.is_grad_enabled():
            self.images = count_images(args, kwargs) or 0

    def _observer(self, name: str) -> Callable:
        def observe(
            module: nn.Module, args: tuple, out: Tensor
        ) -> Tensor | None:
            if not (torch.is_grad_enabled() and args):
                return None
            source = args[0].detach()
            if name not in self._known:
                self._known.add(name)
                if not computes_as_known(module, source, out.detach()):
                    self.strangers.add(name)
            if name in self.strangers:
                return None
            if not out.requires_grad:  # of inputs without gradients
                out.requires_grad_()
            # a view has another gradient after it is changed in place, and
            # leaves cannot be changed
            out = out.clone() if out._is_view() or out.is_leaf else out
            version = source._version

            # In the backward, because only one of the two forwards has
            # gradients if the forward is recomputed to save memory.
            def show(gradient: Tensor) -> None:
                if source._version != version:
                    raise RuntimeError(
                        f'the input of {name} was changed in place before '
                        'the backward; expected an unchanged input'
                    )
                if source.numel():
                    self._see(name, module, source, gradient.detach())

            out.register_hook(show)
            return out

        return observe
