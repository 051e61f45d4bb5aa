"""Checks whether ONNX Runtime and PyTorch give the same outputs.

Raw outputs and scores are compared number by number; boxes are matched,
because rounding may change the order of equal scores. PyTorch's part is the
model's own ``predict`` where the file decodes, so that the decoding is
checked as well.

Some networks amplify rounding errors (a GroupNorm of two almost equal
numbers). The rounding error of PyTorch itself is measured, and raw outputs may
differ by a multiple of it where that is more than the tolerance.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..libraries.samples import demo_samples
from ..utils.errors import first_line
from .decoding import OneStage, TwoStage, is_two_stage
from .onnx import (
    INPUT,
    ClassScores,
    open_session,
    predicted_scores,
)


class CheckError(Exception):
    """ONNX Runtime and PyTorch give different outputs."""


@dataclass(frozen=True)
class Tolerance:
    """Allowed differences.

    Attributes:
        relative (float): Difference of an output over its largest absolute
            value.
        score (float): Difference of the scores of matched boxes, over the
            highest score of the image.
        pixels (float): Difference of the corners of matched boxes.
        unmatched (float): Ratio of boxes without a match.
    """

    relative: float
    score: float
    pixels: float
    unmatched: float


# Differences may be this multiple of PyTorch's rounding error, but not more
# than this ratio of the largest value.
ROUNDING = 10
LARGEST = 0.1

SINGLE = Tolerance(relative=1e-4, score=1e-4, pixels=0.05, unmatched=0.01)
# Eleven bits of precision may change which boxes are suppressed.
HALF = Tolerance(relative=3e-2, score=2e-2, pixels=2.0, unmatched=0.05)


@dataclass
class Agreement:
    """Result of a check.

    Attributes:
        images (int): Images compared.
        relative (dict): Largest relative difference by output.
        rounding (dict): Rounding error of PyTorch itself by output.
        boxes (int): Boxes that PyTorch found.
        matched (int): Boxes of PyTorch with a match in the file's boxes.
        unmatched (int): Boxes of either side without a match. Boxes whose
            score is at the threshold are not counted, because a rounding
            error may leave them out.
        score (float): Largest difference of the scores of matched boxes, as
            in :class:`Tolerance`.
        pixels (float): Largest difference of the corners of matched boxes.
    """

    images: int = 0
    relative: dict[str, float] = field(default_factory=dict)
    rounding: dict[str, float] = field(default_factory=dict)
    boxes: int = 0
    matched: int = 0
    unmatched: int = 0
    score: float = 0.0
    pixels: float = 0.0

    def allowed(self, name: str, tolerance: Tolerance) -> float:
        """Returns the allowed relative difference of a raw output."""
        rounding = ROUNDING * self.rounding.get(name, 0.0)
        return max(tolerance.relative, min(rounding, LARGEST))

    def worst(self, tolerance: Tolerance) -> str:
        """Returns the raw output with the largest ratio to its allowance."""
        return max(
            self.relative,
            key=lambda n: self.relative[n] / self.allowed(n, tolerance),
        )


def check_file(
    path: str | os.PathLike,
    network: Any,
    batches: Iterable[np.ndarray],
    half: bool = False,
) -> Agreement:
    """Run a file and the network that it was made from, and compare.

    Args:
        path (str | os.PathLike): ONNX file.
        network (nn.Module): From :func:`mmgfp.export.onnx.make_network`, in
            single precision.
        batches (Iterable): Normalised floats (N, C, H, W).
        half (bool): Whether the file is in half precision: other tolerances.
            Defaults to False.

    Raises:
        CheckError: If the outputs differ, or the file does not run.
    """
    tolerance = HALF if half else SINGLE
    check = _Check(network, tolerance, half)
    try:
        session = open_session(path)
        for batch in batches:
            given = batch.astype(np.float16) if half else batch
            found = session.run(None, {INPUT: given})
            with torch.no_grad():
                check.compare(torch.from_numpy(batch), found)
    except Exception as error:  # ONNX Runtime's have no common class
        if type(error).__module__.partition('.')[0] != 'onnxruntime':
            raise
        raise CheckError(
            f'ONNX Runtime does not run the file: {first_line(error)}'
        ) from error
    check.raise_for_differences()
    return check.found


class _Check:
    """Compares batch by batch and keeps the largest differences."""

    def __init__(self, network: Any, tolerance: Tolerance, half: bool) -> None:
        self.network = network
        # the precision that measures the effect of rounding
        self.other = torch.float16 if half else torch.float64
        self.model = network.model
        self.tolerance = tolerance
        self.found = Agreement()

    def raise_for_differences(self) -> None:
        """Raise :exc:`CheckError` if the differences are too large.

        It is also raised if nothing was compared.
        """
        if not self.found.images:
            raise CheckError('no images were compared')
        for name, difference in self.found.relative.items():
            allowed = self.found.allowed(name, self.tolerance)
            if not difference <= allowed:  # nan, too
                rounding = self.found.rounding.get(name, 0.0)
                raise CheckError(
                    f'{name} differs from PyTorch by {difference:.1e} of its '
                    f'largest value; allowed are {allowed:.1e} (the rounding '
                    f'error of PyTorch is {rounding:.1e})'
                )
        most = int(self.tolerance.unmatched * self.found.boxes)
        # equal scores may put many boxes at the threshold, but not most
        few = self.found.matched < self.found.boxes / 2
        if self.found.unmatched > most or few:
            raise CheckError(
                f'{self.found.matched} of the {self.found.boxes} boxes that '
                f'PyTorch finds are in the file, {self.found.unmatched} of '
                f'either side have no match; allowed are {most} (matches '
                'have the same label, scores within '
                f'{self.tolerance.score:g} of the highest and corners within '
                f'{self.tolerance.pixels:g} pixels)'
            )

    def compare(self, images: Tensor, outputs: Sequence[np.ndarray]) -> None:
        """Compare the outputs of a batch.

        Args:
            images (Tensor): Normalised (N, C, H, W), in single precision.
            outputs (Sequence): Outputs of ONNX Runtime.
        """
        self.found.images += len(images)
        if len(outputs) != len(self.network.names):
            raise CheckError(
                f'the file has {len(outputs)} outputs, expected '
                f'{len(self.network.names)}: {", ".join(self.network.names)}'
            )
        if isinstance(self.network, ClassScores):
            self._numbers(
                'scores', predicted_scores(self.model, images), *outputs
            )
        elif isinstance(self.network, TwoStage) and not self.network.decode:
            self._stages(images, outputs)
        elif isinstance(self.network, (OneStage, TwoStage)):
            last = 'roi_head' if is_two_stage(self.model) else 'bbox_head'
            settings = getattr(self.model, last).test_cfg
            samples = self._samples(images)
            self.model.predict(images, samples, rescale=False)
            self._boxes(
                [s.pred_instances for s in samples],
                outputs,
                settings.get('score_thr', 0),
                settings['max_per_img'],
            )
        else:
            expected = self.network(images)
            rounded = self._rounded(images)
            for i, name in enumerate(self.network.names):
                self._numbers(name, expected[i], outputs[i])
                rounding = _difference(expected[i].numpy(), rounded[i])
                before = self.found.rounding.get(name, 0.0)
                self.found.rounding[name] = max(rounding, before)

    def _rounded(self, images: Tensor) -> list[np.ndarray]:
        """Returns the raw outputs in the other precision, (...) each."""
        if not hasattr(self, '_copy'):
            self._copy = copy.deepcopy(self.network).to(self.other)
        outputs = self._copy(images.to(self.other))
        return [x.float().numpy() for x in outputs]

    def _samples(self, images: Tensor) -> list[Any]:
        samples = demo_samples(
            'mmdet', self.model, images.shape[-2:], len(images)
        )
        assert samples is not None
        # without ground truth and proposals, which would replace the RPN's
        return [type(sample)(metainfo=sample.metainfo) for sample in samples]

    def _numbers(
        self, name: str, expected: Tensor, output: np.ndarray
    ) -> None:
        a, b = expected.numpy(), output.astype(np.float32)
        if a.shape != b.shape:
            raise CheckError(
                f'{name} has shape {b.shape}, that of PyTorch {a.shape}'
            )
        before = self.found.relative.get(name, 0.0)
        # this order keeps nan
        self.found.relative[name] = max(_difference(a, b), before)

    def _stages(self, images: Tensor, outputs: Sequence[np.ndarray]) -> None:
        """Compare raw outputs; both second stages get the file's proposals."""
        named = dict(zip(self.network.names, outputs))
        features = self.model.extract_feat(images)
        raw = self.model.rpn_head(features)
        for kind, levels in zip(('cls_scores', 'bbox_preds'), raw):
            for i, level in enumerate(levels):
                name = f'rpn_{kind}_{i}'
                self._numbers(name, level, named[name])

        rpn = self.model.rpn_head
        expected = rpn.predict(features, self._samples(images), rescale=False)
        proposals, scores = named['proposals'], named['proposal_scores']
        labels = np.where(scores > 0, 0, -1)
        self._boxes(
            expected,
            (proposals, scores, labels),
            0,
            rpn.test_cfg['max_per_img'],
        )
        rows = proposals.shape[1]
        numbers = np.repeat(np.arange(len(images)), rows)[:, None]
        rois = np.concatenate([numbers, proposals.reshape(-1, 4)], 1)
        second = self.model.roi_head._bbox_forward(
            features, torch.from_numpy(rois.astype(np.float32))
        )
        for name, key in (
            ('roi_cls_scores', 'cls_score'),
            ('roi_bbox_preds', 'bbox_pred'),
        ):
            there = (scores > 0).reshape(-1)
            output = named[name].reshape(len(there), -1)
            wanted = second[key][torch.from_numpy(there)]
            self._numbers(name, wanted, output[there])

    def _boxes(
        self,
        expected: Sequence[Any],
        outputs: Sequence[np.ndarray],
        threshold: float,
        most: int,
    ) -> None:
        """Match boxes; those with a score at the threshold need no match.

        Args:
            expected (Sequence): For each image ``bboxes`` (n, 4), ``scores``
                (n,) and ``labels`` (n,).
            outputs (Sequence): Boxes (N, M, 4), scores (N, M), labels (N, M).
            threshold (float): Boxes with lower scores are left out.
            most (int): Boxes per image.
        """
        for image, instances in enumerate(expected):
            there = outputs[2][image] >= 0
            ours = _Boxes(
                instances.bboxes.numpy(),
                instances.scores.numpy(),
                instances.labels.numpy(),
            )
            theirs = _Boxes(*(x[image][there] for x in outputs))
            scale = max(
                ours.scores.max(initial=0), theirs.scores.max(initial=0)
            )
            margin = self.tolerance.score * float(scale)
            pairs = self._pairs(ours, theirs, float(scale))
            self.found.boxes += len(ours.scores)
            self.found.matched += len(pairs)
            for side, other in ((ours, 0), (theirs, 1)):
                alone = np.ones(len(side.scores), bool)
                alone[[pair[other] for pair in pairs]] = False
                edge = threshold
                if len(side.scores) == most:
                    edge = max(edge, float(side.scores.min()))
                sure = side.scores > edge + margin
                self.found.unmatched += int((alone & sure).sum())

    def _pairs(
        self, ours: _Boxes, theirs: _Boxes, scale: float
    ) -> list[tuple[int, int]]:
        pairs = []
        free = np.ones(len(theirs.scores), bool)
        for i in range(len(ours.scores)):
            corners = np.abs(theirs.corners - ours.corners[i]).max(
                1, initial=0
            )
            score = np.abs(theirs.scores - ours.scores[i]) / scale
            fits = free & (theirs.labels == ours.labels[i])
            fits &= score <= self.tolerance.score
            fits &= corners <= self.tolerance.pixels
            if fits.any():
                j = int(np.where(fits, corners, np.inf).argmin())
                free[j] = False
                pairs.append((i, j))
                self.found.score = max(self.found.score, float(score[j]))
                self.found.pixels = max(self.found.pixels, float(corners[j]))
        return pairs


def _difference(expected: np.ndarray, found: np.ndarray) -> float:
    """Returns the largest difference over the largest absolute value."""
    largest = np.abs(expected).max(initial=1e-12)
    return float(np.abs(expected - found).max(initial=0) / largest)


@dataclass(frozen=True)
class _Boxes:
    """Boxes of one image: corners (n, 4), scores (n,), labels (n,)."""

    corners: np.ndarray
    scores: np.ndarray
    labels: np.ndarray


def batches_of(
    inputs: Sequence[np.ndarray], dynamic: bool
) -> list[np.ndarray]:
    """Returns batches to check a file with.

    Args:
        inputs (Sequence): Normalised floats (1, C, H, W).
        dynamic (bool): Whether the file takes other batch sizes; then the
            first two inputs, padded to one size, are a batch.
    """
    if not dynamic or len(inputs) < 2:
        return list(inputs)
    first, second, *rest = inputs
    height, width = (
        max(first.shape[axis], second.shape[axis]) for axis in (2, 3)
    )
    pair = [
        np.pad(
            x,
            (
                (0, 0),
                (0, 0),
                (0, height - x.shape[2]),
                (0, width - x.shape[3]),
            ),
        )
        for x in (first, second)
    ]
    return [np.concatenate(pair), *rest]
