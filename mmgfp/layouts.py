"""Which image of the batch each row of a layer's input belongs to.

Scores sum mask gradients over everything of one image before they are
squared. The images need not be the first axis: RoI heads see one row per RoI,
window attention several per image, and sequences often come first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

# Of the spread of an image's values. Large enough to show, small enough that
# the same boxes are chosen.
CHANGE = 1e-4

Order = Literal['images', 'blocks', 'turns', 'rois']


@dataclass(frozen=True)
class Layout:
    """How the rows of a layer's input are shared among images.

    Attributes:
        axis (int): The axis of the input along which the rows lie.
        order (str): 'images' for a row per image, 'blocks' for equally many
            in a row per image, 'turns' for images that take turns, 'rois' for
            equally many in a row per RoI.
        extractor (str): For 'rois' the module that extracts them.
    """

    axis: int = 0
    order: Order = 'images'
    extractor: str = ''

    def fits(self, rows: int, images: int, rois: Tensor | None = None) -> bool:
        """Whether there can be so many rows; see :meth:`owners`."""
        if self.order == 'images' or images == 0:
            return rows == images
        if rows == 0 or self.order != 'rois':
            return rows % images == 0
        return rois is not None and len(rois) > 0 and rows % len(rois) == 0

    def owners(
        self,
        rows: int,
        images: int,
        rois: Tensor | None = None,
        device: torch.device | None = None,
    ) -> Tensor:
        """The image of every row, shape (rows,); they must fit.

        Args:
            rows (int): Size of the axis.
            images (int): Images in the batch.
            rois (Tensor, optional): For 'rois' the image of every RoI.
            device (torch.device, optional): For the result.
        """
        if rows == 0:
            return torch.zeros(0, dtype=torch.long, device=device)
        if self.order == 'rois':
            assert rois is not None
            rois, count = rois.to(device), rows // len(rois)
            return rois if count == 1 else rois.repeat_interleave(count)
        each = torch.arange(images, device=device)
        count = rows // images
        if self.order == 'turns':
            return each.repeat(count)
        return each.repeat_interleave(count)


ROW_PER_IMAGE = Layout()


def count_images(args: tuple, kwargs: Mapping[str, Any]) -> int | None:
    """Images in what a network is called with; None if there is no tensor.

    A tensor is a batch of images, a list of tensors with three axes has one
    image each. Without any tensor, an argument that is an empty list has none.
    """
    found = _count((args, dict(kwargs)))
    if found is None and any(
        isinstance(value, list) and not value
        for value in (*args, *kwargs.values())
    ):
        return 0
    return found


def _count(value: Any) -> int | None:
    if isinstance(value, Tensor):
        return len(value) if value.dim() else None
    if _is_image_list(value):
        return len(value)
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        counts = (_count(v) for v in value)
        return next((n for n in counts if n is not None), None)
    return None


def _is_image_list(value: Any) -> bool:
    """Whether this is a list of single images."""
    return (
        isinstance(value, list)
        and len(value) > 0
        and all(isinstance(v, Tensor) and v.dim() == 3 for v in value)
    )


class ImageChange:
    """Forward pre-hook of the network that changes an image of its batch.

    The batch is the first tensor, as for :func:`count_images`.
    """

    def __init__(self, image: int) -> None:
        self.image = image

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple:
        """Args and kwargs to go on with."""
        self._found = False
        return self._change((args, kwargs))

    def _change(self, value: Any) -> Any:
        if self._found:
            return value
        if _is_image_list(value) or (
            isinstance(value, Tensor) and value.dim() > 0
        ):
            self._found = True
            if self.image < len(value) and value[0].is_floating_point():
                batch = list(value)
                batch[self.image] = _noisy(batch[self.image])
                return torch.stack(batch) if torch.is_tensor(value) else batch
        elif type(value) in (list, tuple):
            return type(value)(self._change(v) for v in value)
        elif type(value) is dict:
            return {k: self._change(v) for k, v in value.items()}
        return value


def _noisy(image: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(image.shape, generator=generator).to(image)
    spread = float((image - image.mean()).abs().mean())
    return image + CHANGE * (spread or 1.0) * noise


def images_of_rois(
    args: Sequence[Any], kwargs: Mapping[str, Any], outputs: Any
) -> Tensor | None:
    """The image of every RoI, if this call of a module extracted RoIs.

    Recognised is what is passed, not the class: after the features come
    either RoIs, (R, 5) or (R, 6) with the number of the image first, or a list
    of boxes, (k, 4) per image; out come R rows.

    Returns:
        Tensor | None: (R,).
    """
    if not isinstance(outputs, Tensor) or outputs.dim() < 2:
        return None
    for value in (*args[1:], *kwargs.values()):
        if isinstance(value, Tensor):
            if (
                value.dim() == 2
                and value.shape[1] in (5, 6)
                and value.is_floating_point()
                and len(value) == len(outputs)
            ):
                return value[:, 0].detach().long()
        elif isinstance(value, (list, tuple)) and value:
            boxes: list[Any] = [getattr(v, 'tensor', v) for v in value]
            if all(
                isinstance(b, Tensor) and b.dim() == 2 and b.shape[1] == 4
                for b in boxes
            ) and sum(len(b) for b in boxes) == len(outputs):
                counts = torch.tensor([len(b) for b in boxes])
                images = torch.arange(len(boxes))
                return images.repeat_interleave(counts).to(outputs.device)
    return None
