"""Predictions of the networks, a part of the page about a pruning run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup
from mmengine.config import Config
from torch import nn

from ..libraries.config import load_config
from ..libraries.models import load_model
from ..libraries.pictures import class_names, dataset_pictures
from ..slimming.checkpoint import load_plain_checkpoint, meta_of
from ..utils.atomic import from_here
from ..utils.errors import type_and_line
from .html import picture, text, tiles
from .networks import PruningRun
from .predictions import build_visualizer, draw_prediction, predict

# Number of images to draw on.
PICTURES = 4


@dataclass(frozen=True)
class _Candidate:
    """A network to run: its name, config and weights."""

    name: str
    config: Config
    checkpoint: str


def predictions(
    run: PruningRun,
    folder: Path,
    paths: Sequence[str] | None,
    score_thr: float,
) -> Markup:
    """Returns drawn predictions of the baseline and the slim network.

    Args:
        run (PruningRun): The run.
        folder (Path): Folder for the figures.
        paths (Sequence[str], optional): Pictures to draw on. By default some
            of the config's test dataset.
        score_thr (float): Boxes with smaller scores are not drawn.
    """
    # models, datasets and pipelines may raise any error, and the rest of
    # the page is useful without predictions
    try:
        return _draw_all_predictions(run, folder, paths, score_thr)
    except Exception as error:
        return text(f'Predictions were not drawn: {type_and_line(error)}')


def _draw_all_predictions(
    run: PruningRun,
    folder: Path,
    paths: Sequence[str] | None,
    score_thr: float,
) -> Markup:
    baseline = run.networks[0].checkpoint
    if run.config is None or not baseline:
        return text(
            'Predictions were not drawn: the checkpoint that the run began '
            'with (load_from) is not known.'
        )
    if not Path(baseline).is_file():
        return text(
            f'Predictions were not drawn: the baseline {baseline} is not on '
            'this machine.'
        )
    config = load_config(run.config)
    if paths is None:
        paths = dataset_pictures(config, PICTURES)
    if not paths:
        return text(
            "Predictions were not drawn: the images of the config's test "
            'dataset are not on this machine. --images FOLDER selects others.'
        )
    candidates = [
        _Candidate('baseline', config, baseline),
        _slim_candidate(run, config),
    ]
    found = {c.name: predict(_load(c), config, paths) for c in candidates}
    meta = meta_of(load_plain_checkpoint(baseline), baseline)
    classes = class_names(config, meta, None)
    visualizer = build_visualizer(config, classes)
    figures = []
    for i, path in enumerate(paths):
        for name, samples in found.items():
            png = folder / f'predictions_{i}_{name.replace(" ", "_")}.png'
            draw_prediction(visualizer, path, samples[i], score_thr, png)
            words = f'predictions of {name}'
            caption = f'{Path(path).name}, {name}'
            figures.append(picture(png, words, caption, shrinks=True))
    return text(
        f'Predictions of the baseline and of {candidates[1].name} '
        f'({from_here(candidates[1].checkpoint)}). Boxes with a score below '
        f'{score_thr:g} are not drawn.'
    ) + tiles(figures)


def _slim_candidate(run: PruningRun, config: Config) -> _Candidate:
    """Returns the smallest network, fine-tuned if that was done."""
    ratio = run.ratios[-1]
    for network in run.networks[::-1]:
        if network.ratio is ratio and network.checkpoint:
            if network.kind == 'saved':
                break
            finetune = load_config(ratio.finetune_config)
            return _Candidate(network.name, finetune, network.checkpoint)
    return _Candidate(ratio.stem, config, str(ratio.checkpoint))


def _load(candidate: _Candidate) -> nn.Module:
    return load_model(candidate.config, candidate.checkpoint)
