"""Decoding of boxes from raw outputs of detectors, for ONNX.

MMDetection's own post-processing cannot be traced: the number of its rows
depends on the data, and it calls extension operators. Here every image has a
fixed number of rows, some of which are marked as absent, and suppression and
RoIAlign become operators of ONNX. Only heads with MMDetection's common
post-processing are supported, so that the boxes are the same; :func:`why_not`
gives the reason for others.

Letters: N images, P places of a level (anchors or points), B candidates, M
detections, R regions, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..libraries.mmdet import best_apart

# Methods that :class:`OneStage` and :class:`TwoStage` replace, and the
# class that they must come from.
_ONE_STAGE = {
    '': {'predict': 'SingleStageDetector'},
    'bbox_head': {
        'predict': 'BaseDenseHead',
        'predict_by_feat': 'BaseDenseHead',
        '_predict_by_feat_single': 'BaseDenseHead',
        '_bbox_post_process': 'BaseDenseHead',
    },
}
_REGIONS = {
    '': {'predict': 'TwoStageDetector'},
    'rpn_head': {
        'predict': 'BaseDenseHead',
        'predict_by_feat': 'BaseDenseHead',
        '_predict_by_feat_single': 'RPNHead',
        '_bbox_post_process': 'RPNHead',
    },
    'roi_head': {
        'predict': 'BaseRoIHead',
        '_bbox_forward': 'StandardRoIHead',
        'predict_bbox': 'StandardRoIHead',
    },
    'roi_head.bbox_roi_extractor': {'forward': 'SingleRoIExtractor'},
    'roi_head.bbox_head': {
        'predict_by_feat': 'BBoxHead',
        '_predict_by_feat_single': 'BBoxHead',
    },
}


def is_two_stage(model: nn.Module) -> bool:
    """Returns whether a detector has a second stage for proposals."""
    return hasattr(model, 'roi_head')


def why_not(model: Any) -> str:
    """Returns why a detector's boxes cannot be decoded; '' if they can."""
    methods = _REGIONS if is_two_stage(model) else _ONE_STAGE
    for path, origins in methods.items():
        try:
            module = model.get_submodule(path)
        except AttributeError:
            return f'it has no {path}'
        for name, origin in origins.items():
            method = getattr(type(module), name, None)
            where = getattr(method, '__qualname__', '').rpartition('.')[0]
            if where != origin:
                kind = type(module).__name__
                return f'{kind} has a {name} of its own'
    if is_two_stage(model):
        return _why_not_regions(model)
    return _why_not_dense(model.bbox_head, model.bbox_head.test_cfg)


def _why_not_dense(head: Any, settings: Mapping[str, Any]) -> str:
    if not hasattr(head, 'loss_cls'):  # SSDHead in some versions
        kind = type(head).__name__
        return f'{kind} has no loss_cls, which its predict needs, too'
    if getattr(head.loss_cls, 'custom_cls_channels', False):
        return f'{type(head.loss_cls).__name__} has scores of its own'
    if not hasattr(head, 'prior_generator'):
        return f'{type(head).__name__} has no prior_generator'
    return _why_not_nms(settings)


def _why_not_nms(settings: Mapping[str, Any]) -> str:
    nms = settings.get('nms') or {}
    extra = nms.keys() - {
        *('type', 'iou_threshold', 'class_agnostic', 'split_thr'),
    }
    kind = nms.get('type', 'nms')
    name = getattr(kind, '__name__', kind)  # configs may have the function
    if name != 'nms' or 'iou_threshold' not in nms or extra:
        return f'its suppression is {dict(nms)}, but ONNX has plain nms only'
    return ''


def _why_not_regions(model: Any) -> str:
    roi_head = model.roi_head
    if roi_head.bbox_head.custom_cls_channels:
        return 'its box head has scores of its own'
    for layer in roi_head.bbox_roi_extractor.roi_layers:
        plain = type(layer).__name__ == 'RoIAlign' and layer.pool_mode == 'avg'
        if not plain:
            return f'ONNX has RoIAlign, but not {layer}'
    return _why_not_dense(
        model.rpn_head, model.rpn_head.test_cfg
    ) or _why_not_nms(roi_head.test_cfg)


class OneStage(nn.Module):
    """A one-stage detector with decoding and suppression.

    Args:
        model (nn.Module): For which :func:`why_not` returns ''.
        example (Tensor): Normalised images (N, 3, H, W).
        dynamic (bool): Whether the graph takes other sizes.
    """

    names = ('boxes', 'scores', 'labels')

    def __init__(self, model: Any, example: Tensor, dynamic: bool) -> None:
        super().__init__()
        self.model = model
        cls_scores = self._raw(example)[0]
        head = model.bbox_head
        self.decode = _DenseDecoder(
            head, head.test_cfg, [s.shape for s in cls_scores], dynamic
        )
        self.dynamic = dynamic

    def _raw(self, images: Tensor) -> tuple[Any, ...]:
        return self.model.bbox_head(self.model.extract_feat(images))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Returns boxes (N, M, 4), scores (N, M) and labels (N, M).

        Boxes are left, top, right, bottom in pixels of the input. Rows that
        are not detections come last: score 0, label -1.
        """
        limits = _limits(images, self.dynamic)
        boxes, scores, labels = self.decode(limits, *self._raw(images))
        return boxes, scores, labels


class TwoStage(nn.Module):
    """A two-stage detector, up to its raw outputs or to its boxes.

    Args:
        model (nn.Module): For which :func:`why_not` returns ''.
        example (Tensor): Normalised images (N, 3, H, W).
        dynamic (bool): Whether the graph takes other sizes.
        decode (bool): Whether to return boxes. Otherwise it returns the raw
            outputs of the RPN and the box head, and the proposals.
    """

    def __init__(
        self, model: Any, example: Tensor, dynamic: bool, decode: bool
    ) -> None:
        super().__init__()
        self.model = model
        self.dynamic = dynamic
        self.decode = decode
        cls_scores, _ = model.rpn_head(model.extract_feat(example))
        self.propose = _DenseDecoder(
            model.rpn_head,
            model.rpn_head.test_cfg,
            [s.shape for s in cls_scores],
            dynamic,
            per_level=True,
        )
        self.names: tuple[str, ...] = OneStage.names
        if not decode:
            levels = range(len(cls_scores))
            self.names = (
                *(f'rpn_cls_scores_{i}' for i in levels),
                *(f'rpn_bbox_preds_{i}' for i in levels),
                *('proposals', 'proposal_scores'),
                *('roi_cls_scores', 'roi_bbox_preds'),
            )

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Returns the outputs of ``names``; boxes as in :class:`OneStage`.

        ``proposals`` are (N, R, 4) in pixels, ``proposal_scores`` (N, R),
        where 0 marks an absent one; ``roi_cls_scores`` (N, R, C + 1)
        before the softmax, ``roi_bbox_preds`` (N, R, 4 C) or (N, R, 4).
        """
        limits = _limits(images, self.dynamic)
        features = self.model.extract_feat(images)
        cls_scores, bbox_preds = self.model.rpn_head(features)
        proposals, found, _ = self.propose(limits, cls_scores, bbox_preds)

        image = torch.arange(proposals.shape[0], device=images.device)
        image = image.to(proposals).view(-1, 1, 1)
        rois = torch.cat([proposals[..., :1] * 0 + image, proposals], 2)
        cls_score, bbox_pred = self._second_stage(
            features, rois.reshape(-1, 5)
        )
        rows = (proposals.shape[0], self.propose.detections)
        if self.dynamic:
            rows = (proposals.shape[0], proposals.shape[1])
        cls_score = cls_score.reshape(*rows, cls_score.shape[-1])
        bbox_pred = bbox_pred.reshape(*rows, bbox_pred.shape[-1])
        if not self.decode:
            return (
                *cls_scores,
                *bbox_preds,
                proposals,
                found,
                cls_score,
                bbox_pred,
            )
        return self._detections(
            limits, proposals, found, cls_score.float(), bbox_pred.float()
        )

    def _second_stage(
        self, features: Sequence[Tensor], rois: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Returns raw outputs for ``rois`` (R, 5), the image index first."""
        head = self.model.roi_head
        pooled = _extract(head.bbox_roi_extractor, features, rois)
        pooled = pooled.to(features[0].dtype)
        if head.with_shared_head:
            pooled = head.shared_head(pooled)
        return head.bbox_head(pooled)

    def _detections(
        self,
        limits: Tensor,
        proposals: Tensor,
        found: Tensor,
        cls_score: Tensor,
        bbox_pred: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        head = self.model.roi_head.bbox_head
        settings = self.model.roi_head.test_cfg
        scores = cls_score.softmax(-1)[..., :-1]
        scores = torch.where(
            (scores > settings['score_thr']) & (found[..., None] > 0),
            scores,
            -torch.ones_like(scores),
        )
        classes = scores.shape[-1]
        boxes = 1 if head.reg_class_agnostic else classes
        # every class has its own box: (N, R, 4 C) -> (N, R C, 4)
        priors = proposals[:, :, None].expand(-1, -1, boxes, -1)
        deltas = bbox_pred.reshape(-1, 4)
        decoded = _decode(head.bbox_coder, priors.reshape(-1, 4), deltas)
        decoded = decoded.reshape(bbox_pred.shape[0], -1, boxes, 4)
        decoded = _clip(head.bbox_coder, decoded, limits)
        decoded = decoded.expand(-1, -1, classes, -1)
        labels = torch.arange(classes, device=scores.device)
        return suppress(
            decoded.reshape(bbox_pred.shape[0], -1, 4),
            scores.flatten(1),
            labels.expand_as(scores).flatten(1),
            settings['nms'],
            settings['max_per_img'],
            self.dynamic,
        )


class _DenseDecoder:
    """Decodes the boxes of a dense head, one-stage or RPN.

    Args:
        head (nn.Module): With ``prior_generator`` and ``bbox_coder``.
        settings (Mapping): Its ``test_cfg``.
        shapes (Sequence): Of the scores of each level, (N, A * C, H, W).
        dynamic (bool): Whether the graph takes other sizes.
        per_level (bool): Suppress within levels instead of within classes,
            without a threshold of scores. Defaults to False.
    """

    def __init__(
        self,
        head: Any,
        settings: Mapping[str, Any],
        shapes: Sequence[Sequence[int]],
        dynamic: bool,
        per_level: bool = False,
    ) -> None:
        self.head = head
        self.settings = settings
        self.dynamic = dynamic
        self.per_level = per_level
        self.classes = head.cls_out_channels - (not head.use_sigmoid_cls)
        device = next(head.parameters()).device
        # Priors of fixed sizes are computed here, so that they are constants
        # of the graph.
        self.priors = self._priors([s[-2:] for s in shapes], device)
        anchors = [s[1] // head.cls_out_channels for s in shapes]
        kept = (
            self._most(a * s[-2] * s[-1] * self.classes)
            for a, s in zip(anchors, shapes)
        )
        self.detections = min(settings['max_per_img'], sum(kept))

    def _most(self, count: int) -> int:
        """Returns how many candidates of a level are kept."""
        most = self.settings.get('nms_pre', -1)
        return min(most, count) if most > 0 else count

    def _priors(
        self, sizes: Sequence[Sequence[int]], device: torch.device
    ) -> list[Tensor]:
        priors = self.head.prior_generator.grid_priors(
            sizes, dtype=torch.float32, device=device
        )
        # some are objects that wrap the tensor
        return [getattr(p, 'tensor', p) for p in priors]

    def __call__(
        self,
        limits: Tensor,
        cls_scores: Sequence[Tensor],
        bbox_preds: Sequence[Tensor],
        factors: Sequence[Tensor] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns boxes (N, M, 4), scores (N, M), labels or levels (N, M)."""
        priors = self.priors
        if self.dynamic:
            sizes = [s.shape[-2:] for s in cls_scores]
            priors = self._priors(sizes, limits.device)
        levels = [
            self._level(
                i,
                cls_scores[i].float(),
                bbox_preds[i].float(),
                factors[i].float() if factors else None,
                priors[i],
            )
            for i in range(len(cls_scores))
        ]
        boxes, scores, groups = (torch.cat(parts, 1) for parts in zip(*levels))
        boxes = _clip(self.head.bbox_coder, boxes, limits)
        least = self.settings.get('min_bbox_size', -1)
        if least >= 0:
            sides = boxes[..., 2:] - boxes[..., :2]
            large = (sides > least).all(-1)
            scores = torch.where(large, scores, -torch.ones_like(scores))
        return suppress(
            boxes,
            scores,
            groups,
            self.settings['nms'],
            self.settings['max_per_img'],
            self.dynamic,
        )

    def _level(
        self,
        level: int,
        cls_score: Tensor,
        bbox_pred: Tensor,
        factor: Tensor | None,
        priors: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the best candidates of a level; -1 below the threshold."""
        scores = _rows(cls_score, self.head.cls_out_channels)
        if self.head.use_sigmoid_cls:
            scores = scores.sigmoid()
        else:
            scores = scores.softmax(-1)[..., :-1]
        flat = scores.flatten(1)  # (N, P * C)
        most = self.settings.get('nms_pre', -1)
        count = _at_most(most, flat, self.dynamic)
        best, index = flat.topk(count)
        place = torch.div(index, self.classes, rounding_mode='floor')
        size = getattr(self.head.bbox_coder, 'encode_size', 4)
        deltas = _take(_rows(bbox_pred, size), place)
        decoded = _decode(
            self.head.bbox_coder,
            priors[place].reshape(-1, priors.shape[-1]),
            deltas.reshape(-1, size),
        ).reshape(deltas.shape[0], -1, 4)
        if self.per_level:
            return decoded, best, torch.full_like(index, level)
        # as in MMDetection, the score factor does not affect the choice
        final = best
        if factor is not None:
            factor = _rows(factor, 1).flatten(1).sigmoid()
            final = best * factor.gather(1, place)
        enough = best > self.settings.get('score_thr', 0)
        final = torch.where(enough, final, -torch.ones_like(final))
        return decoded, final, index - place * self.classes


def _rows(x: Tensor, width: int) -> Tensor:
    """(N, A * width, H, W) -> (N, H * W * A, width)."""
    return x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, width)


def _take(rows: Tensor, index: Tensor) -> Tensor:
    """Rows (N, P, D) at ``index`` (N, K) -> (N, K, D)."""
    return rows.gather(1, index[..., None].expand(-1, -1, rows.shape[-1]))


def _decode(coder: Any, priors: Tensor, deltas: Tensor) -> Tensor:
    """Returns boxes (K, 4) from a coder of MMDetection, not clipped."""
    boxes = coder.decode(priors, deltas)
    return getattr(boxes, 'tensor', boxes)


def _clip(coder: Any, boxes: Tensor, limits: Tensor) -> Tensor:
    if not getattr(coder, 'clip_border', True):
        return boxes
    return torch.minimum(boxes.clamp(min=0), limits)


def _limits(images: Tensor, dynamic: bool) -> Tensor:
    """Returns (W, H, W, H) of the images."""
    if dynamic:
        shape = torch._shape_as_tensor(images)
        return shape[torch.tensor([3, 2, 3, 2])].float()
    height, width = (int(side) for side in images.shape[-2:])
    return torch.tensor([width, height, width, height]).to(
        images.device, torch.float32
    )


def _at_most(count: int, rows: Tensor, dynamic: bool) -> Any:
    """Returns ``count``, at most the size of axis 1; the size if <= 0.

    In a dynamic graph it is a tensor, because it depends on the size.
    Otherwise it is a number, because some runtimes need a constant.
    """
    if not dynamic or not torch.jit.is_tracing():
        length = int(rows.shape[1])
        return min(count, length) if count > 0 else length
    known = torch._shape_as_tensor(rows)[1:2]
    if count <= 0:
        return known[0]
    return torch.cat([torch.tensor([count]), known]).min()


def suppress(
    boxes: Tensor,
    scores: Tensor,
    groups: Tensor,
    settings: Mapping[str, Any],
    count: int,
    dynamic: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Suppress boxes that overlap a better one within a group.

    Args:
        boxes (Tensor): (N, B, 4).
        scores (Tensor): (N, B); boxes with scores <= 0 are absent.
        groups (Tensor): (N, B), whole numbers: classes or levels.
        settings (Mapping): ``iou_threshold`` and ``class_agnostic``, which
            ignores the groups.
        count (int): Largest number of boxes to keep.
        dynamic (bool): Whether B depends on the size of the images.

    Returns:
        tuple: Boxes (N, M, 4), scores and groups (N, M), best first; absent
        ones come last, with score 0 and group -1.
    """
    count = count if count > 0 else boxes.shape[1]
    apart = boxes
    if not settings.get('class_agnostic', False):
        # boxes of different groups are moved apart
        step = boxes.amax((1, 2), keepdim=True) + 1
        apart = boxes + groups[..., None].to(boxes) * step
    selected = _Suppression.apply(
        apart, scores[:, None], count, float(settings['iou_threshold'])
    )
    kept = torch.zeros_like(scores).index_put(
        (selected[:, 0], selected[:, 2]), scores.new_ones(())
    )
    scores = torch.where(kept > 0, scores, -torch.ones_like(scores))
    best, index = scores.topk(_at_most(count, scores, dynamic))
    there = best > 0
    chosen = _take(boxes, index)
    return (
        torch.where(there[..., None], chosen, torch.zeros_like(chosen)),
        torch.where(there, best, torch.zeros_like(best)),
        torch.where(there, groups.gather(1, index), -torch.ones_like(index)),
    )


class _Suppression(torch.autograd.Function):
    """ONNX's NonMaxSuppression: (K, 3) of image, 0, index of the box.

    The export of ``torchvision.ops.nms`` takes the boxes of one image, without
    a limit. Eight images of 1000 boxes in one list took 155 ms instead of 0.4
    ms with 100 boxes per image (ONNX Runtime 1.31.1, one core).
    """

    @staticmethod
    def forward(
        ctx: Any, boxes: Tensor, scores: Tensor, count: int, limit: float
    ) -> Tensor:
        if torch.jit.is_tracing():
            # The code below would be traced, too; the values are not used.
            return torch.zeros(1, 3, dtype=torch.long)
        chosen = []
        for image, (places, (found,)) in enumerate(zip(boxes, scores)):
            there = (found > 0).nonzero().squeeze(1)
            index = there[best_apart(places[there], found[there], limit)]
            index = index[:count]
            zero = torch.zeros_like(index)
            chosen.append(torch.stack([zero + image, zero, index], 1))
        return torch.cat(chosen)

    @staticmethod
    def symbolic(
        g: Any, boxes: Any, scores: Any, count: int, limit: float
    ) -> Any:
        def constant(value: float, dtype: torch.dtype) -> Any:
            return g.op('Constant', value_t=torch.tensor([value], dtype=dtype))

        return g.op(
            'NonMaxSuppression',
            boxes,
            scores,
            constant(count, torch.long),
            constant(limit, torch.float32),
            constant(0, torch.float32),
        )


def _extract(
    extractor: Any, features: Sequence[Tensor], rois: Tensor
) -> Tensor:
    """Returns features of ``rois`` (R, 5) from their levels, (R, C, h, w)."""
    levels = len(extractor.roi_layers)
    features = [f.float() for f in features[:levels]]
    if levels == 1:
        return _align(features[0], rois, extractor.roi_layers[0])
    level = extractor.map_roi_levels(rois, levels)
    layer = extractor.roi_layers[0]
    pooled = features[0].new_zeros(
        rois.shape[0], extractor.out_channels, *layer.output_size
    )
    for i, layer in enumerate(extractor.roi_layers):
        index = (level == i).nonzero().squeeze(1)
        part = _align(features[i], rois[index], layer)
        pooled = pooled.index_put((index,), part)
    return pooled


def _align(features: Tensor, rois: Tensor, layer: Any) -> Tensor:
    """Runs MMCV's RoIAlign as torchvision's, which has an ONNX export."""
    from torchvision.ops import roi_align

    return roi_align(
        features,
        rois,
        layer.output_size,
        layer.spatial_scale,
        layer.sampling_ratio,
        layer.aligned,
    )
