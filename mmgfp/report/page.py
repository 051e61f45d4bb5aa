"""Contents of the page about a pruning run.

A sentence replaces each part for which no data are found.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
from markupsafe import Markup
from torch import Tensor

from ..cost.model import METRICS
from ..libraries.pictures import folder_pictures
from ..slimming.checkpoint import load_plain_checkpoint, weights_of
from ..slimming.history import STAYS
from ..utils.atomic import complete, from_here
from .charts import (
    Point,
    draw_accuracy,
    draw_progress,
    draw_scores,
    draw_widths,
)
from .html import folded, page, picture, table, text
from .networks import Network, PruningRun, read_pruning_run
from .page_predictions import PICTURES, predictions
from .workdir import Evaluation, SavedRatio, read_course

SCORE_THR = 0.3

_NO_ACCURACY = (
    'No accuracy was found: no run in this folder, in a folder inside it or '
    'beside it has validated or tested one of these networks. Run '
    'mmgfp test CONFIG CHECKPOINT.'
)


def write_report(
    work_dir: str | os.PathLike,
    out: str | os.PathLike | None = None,
    images: str | os.PathLike | None = None,
    score_thr: float = SCORE_THR,
) -> Path:
    """Write the page about a pruning run, and its figures beside it.

    Args:
        work_dir (str | os.PathLike): Folder of the run.
        out (str | os.PathLike, optional): The page. The figures are in a
            folder of the same name without the suffix. Defaults to
            'report.html' in the work dir.
        images (str | os.PathLike, optional): Folder of images to draw
            predictions on. Defaults to those of the config's test dataset.
        score_thr (float): Boxes with smaller scores are not drawn. Defaults to
            0.3.

    Returns:
        Path: The page.

    Raises:
        FileNotFoundError: If there is no such folder, or no structure in it.
        ValueError: If a file of a saved ratio is damaged.
    """
    run = read_pruning_run(work_dir)
    paths = folder_pictures(images, PICTURES) if images else None
    path = Path(out or Path(work_dir, 'report.html'))
    figures = path.with_suffix('')
    figures.mkdir(parents=True, exist_ok=True)
    html = page(
        title=_title(run),
        lead=_head(run),
        sections=[
            ('Channels kept', _channels(run, figures)),
            (
                'During pruning',
                _progress(run, figures) + _widths(run, figures),
            ),
            ('Scores of the last step', _scores(run, figures)),
            ('Accuracy and cost', _accuracy(run, figures)),
            ('Predictions', predictions(run, figures, paths, score_thr)),
            ('All numbers', _numbers(run)),
        ],
    )
    with complete(path) as partial:
        Path(partial).write_text(html, 'utf-8')
    return path


# -- head ------------------------------------------------------------------


def _title(run: PruningRun) -> str:
    last = run.ratios[-1]
    metric = _metric(last)
    ratio = f'{last.structure.ratio(metric):.0%}'.replace('%', ' %')
    return f'{last.structure.architecture}: {ratio} of the {metric} left'


def _metric(ratio: SavedRatio) -> str:
    """Returns the metric: 'flops', 'acts', 'params' or 'latency'."""
    return ratio.stem.split('_')[0]


def _head(run: PruningRun) -> Markup:
    structure = run.ratios[-1].structure
    shape = ' x '.join(map(str, structure.input_shape))
    words = f'Pruned with {from_here(structure.source)}'
    if run.networks[0].checkpoint:
        words += f', from {from_here(run.networks[0].checkpoint)}'
    words += f'. Saved in {from_here(run.work_dir)}.'
    if shape:
        words += f' Cost is counted for an image of {shape} pixels.'
    return text(words) + _networks_table(run)


def _networks_table(run: PruningRun) -> Markup:
    head = ['network', *METRICS, 'weights', run.metric or 'accuracy', 'from']
    rows = [_network_row(run, network) for network in run.networks]
    return table(head, rows)


def _network_row(run: PruningRun, network: Network) -> list[str]:
    found = network.accuracy(run.metric)
    costs = [
        f'{_short(cost)} ({cost / before:.1%})'
        for cost, before in _costs(run, network).values()
    ]
    return [
        network.name,
        *costs,
        _size_of_weights(network.checkpoint),
        f'{found.metrics[run.metric]:.4g}' if found else 'not tested',
        found.what if found else '',
    ]


def _costs(
    run: PruningRun, network: Network
) -> dict[str, tuple[float, float]]:
    """Returns metric -> (cost of the network, cost of the original)."""
    before = run.ratios[-1].structure.cost_before
    return {
        metric: (network.cost[metric], before[metric]) for metric in METRICS
    }


def _short(count: float) -> str:
    """Returns a count as 12.3 G, 45.6 M or 7.89 k."""
    for unit, size in (('G', 1e9), ('M', 1e6), ('k', 1e3)):
        if count >= size:
            return f'{count / size:.4g} {unit}'
    return f'{count:.0f}'


def _size_of_weights(path: str) -> str:
    """Returns the size of the weights without the state of optimisers."""
    if not path or not Path(path).is_file():
        return 'not found'
    try:
        weights = weights_of(load_plain_checkpoint(path), path)
    except ValueError:  # it holds more than tensors
        return 'not readable'
    count = sum(
        t.numel() * t.element_size()
        for t in weights.values()
        if isinstance(t, Tensor)
    )
    return f'{count / 1e6:.2f} MB'


# -- figures ---------------------------------------------------------------


def _channels(run: PruningRun, folder: Path) -> Markup:
    """Returns the figures of kept channels, the smallest network first."""
    html = Markup()
    for ratio in run.ratios[::-1]:
        if not ratio.picture.is_file():
            html += text(f'The figure {ratio.picture.name} was not found.')
            continue
        path = folder / f'channels_{ratio.stem}.png'
        shutil.copyfile(ratio.picture, path)
        caption = (
            f'{ratio.stem}: layers with pruned output channels, in the order '
            'of the network.'
        )
        if ratio.scores is not None:  # they name the groups
            caption += (
                ' A line at the right joins layers of one channel group: '
                'the same channels are pruned in all of them.'
            )
        words = f'channels kept per layer at {ratio.stem}'
        figure = picture(path, words, caption)
        last = ratio is run.ratios[-1]
        html += figure if last else folded(ratio.stem, figure)
    return html


def _progress(run: PruningRun, folder: Path) -> Markup:
    if not any('loss' in record for record in run.records):
        return text(
            'No log was found: there is no scalars.json of the training in '
            'this folder.'
        )
    path = folder / 'progress.png'
    saved = {r.stem: r.scores.iteration for r in run.ratios if r.scores}
    draw_progress(run.records, saved, path)
    return picture(
        path,
        'remaining cost and loss over the iterations',
        'Remaining cost and loss over the iterations of the training, as '
        'logged by MMEngine. Vertical lines mark saved ratios.',
    )


def _widths(run: PruningRun, folder: Path) -> Markup:
    """Returns the figure of a trained search; nothing for other runs."""
    last = run.ratios[-1]
    if not last.course.is_file():
        return Markup()
    groups, course = read_course(last.course)
    path = folder / f'widths_{last.stem}.png'
    draw_widths(groups, course, path)
    return picture(
        path,
        'expected widths over the search',
        'Expected ratio of the channels of every group over the steps of the '
        'search.',
    )


def _scores(run: PruningRun, folder: Path) -> Markup:
    last = run.ratios[-1]
    if last.scores is None:
        return text(f'There are no scores in {last.stem}.json.')
    path = folder / f'scores_{last.stem}.png'
    draw_scores(last.scores, path)
    divided = (
        'The scores are divided by the saving of a unit at the beginning of '
        'the step; the choices within a step change it. '
        if last.scores.normalize_by != 'none'
        else ''
    )
    return picture(
        path,
        f'scores per channel group at {last.stem}',
        f'Scores of {last.scores.criterion or "the criterion"} in the step '
        f'that reached {last.stem} (iteration '
        f'{last.scores.iteration}), one mark per unit of each channel group. '
        f'{divided}Scores of zero are at the left edge.',
    )


def _accuracy(run: PruningRun, folder: Path) -> Markup:
    if not run.metric:
        return text(_NO_ACCURACY)
    cost = _metric(run.ratios[-1])
    if any(cost not in network.cost for network in run.networks):
        cost = 'flops'  # the latency of the baseline is not known
    original = run.ratios[-1].structure.cost_before[cost]
    points: dict[str, list[Point]] = dict(baseline=[], saved=[], finetuned=[])
    missing = []
    for network in run.networks:
        found = network.accuracy(run.metric)
        if found is None:
            missing.append(network.name)
            continue
        ratio = network.cost[cost] / original
        point = network.name, ratio, found.metrics[run.metric]
        points[network.kind].append(point)
    during = _during_the_run(run, cost)
    if not during and not any(points.values()):
        return text(_NO_ACCURACY)
    path = folder / 'accuracy.png'
    draw_accuracy(
        run.metric,
        cost,
        pruning=during,
        path=path,
        **points,
    )
    html = picture(
        path,
        f'{run.metric} against remaining {cost}',
        'Results of tests, or of validations if there is no test. During '
        f'the run, {cost} are those logged last before the validation.',
    )
    if missing:
        html += text(f'No accuracy was found for {", ".join(missing)}.')
    if not points['finetuned']:
        html += text('No result of fine-tuning was found.')
    return html


def _during_the_run(run: PruningRun, cost: str) -> list[Point]:
    return [
        ('', found.ratios[cost], found.metrics[run.metric])
        for found in run.evaluations
        if cost in found.ratios and run.metric in found.metrics
    ]


# -- tables ----------------------------------------------------------------


def _numbers(run: PruningRun) -> Markup:
    costs = [
        [
            network.name,
            *(f'{now:,.0f}' for now, _ in _costs(run, network).values()),
        ]
        for network in run.networks
    ]
    html = table(['network', *METRICS], costs)
    results = [
        _result_row(run, found, network.name)
        for network in run.networks
        for found in network.evaluations
        if found not in run.evaluations
    ] + [
        _result_row(run, found, 'during the run') for found in run.evaluations
    ]
    if results:
        head = ['network', 'what', 'of', 'folder', 'result']
        html += folded(
            f'Validations and tests ({len(results)})',
            table(head, results, head),
        )
    scores = run.ratios[-1].scores
    if scores is not None:
        rows = []
        for name, group in scores.groups.items():
            values, chosen = scores.last_step(name)
            known = f'{np.median(values):.2e}' if len(values) else 'none'
            there = (group.removed == STAYS).sum() + chosen.sum()
            rows.append(
                [
                    name,
                    str(there),
                    str(chosen.sum()),
                    known,
                    ', '.join(group.layers),
                ]
            )
        shared = 'layers whose outputs are cut'
        head = ['group', 'units', 'removed', 'median score', shared]
        html += folded(
            f'Channel groups before the last step ({len(rows)})',
            table(head, rows, [shared]),
        )
    return html


def _result_row(run: PruningRun, found: Evaluation, name: str) -> list[str]:
    place = os.path.relpath(found.place, run.work_dir.resolve().parent)
    metrics = ', '.join(f'{k} {v:.4g}' for k, v in found.metrics.items())
    return [name, found.what, found.of, place, metrics]
