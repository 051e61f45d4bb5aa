"""Tables of the pages in docs/accuracy."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from results import Result, Summary, score, seeds_of

from mmgfp.speed.tables import row
from mmgfp.utils.environment import with_what


def gains(summary: Summary, other: Summary) -> list[float]:
    """Seed by seed, of those that both have."""
    ours, theirs = summary.by_seed(), other.by_seed()
    return [ours[seed] - theirs[seed] for seed in ours if seed in theirs]


def accuracy_table(
    rows: Sequence[Summary],
    found: Mapping[str, Summary],
    others: Mapping[str, Summary] | None = None,
) -> list[str]:
    """Rows of a table; what they differ from baseline, control and others."""
    control, others = found.get('unpruned'), others or {}
    head = ['experiment', 'runs', 'before fine-tuning', 'fine-tuned']
    head += ['− baseline', *others, *(['− control'] if control else [])]
    head += ['flops', 'acts', 'params', 'rate, each run (baseline/seed)']
    lines = [row(*head), row('---', *['---:'] * (len(head) - 2), '---')]
    for summary in rows:
        lines.append(
            row(
                f'`{summary.name}`',
                str(len(summary.runs)),
                score_words(summary, 'pruned'),
                score_words(summary) + at_half(summary),
                f'{summary.gain():+.2f}',
                *(mean_gain(summary, other) for other in others.values()),
                *([control_gain(summary, control)] if control else []),
                *(
                    f'{summary.share(m):.1%}'
                    for m in ('flops', 'acts', 'params')
                ),
                rates_words(summary),
            )
        )
    return lines


def rates_words(summary: Summary) -> str:
    """Every run at every rate; the one that was chosen is bold."""
    words = []
    for lr, runs in sorted(summary.rates.items()):
        rate = f'**{lr:g}**' if lr == summary.lr else f'{lr:g}'
        each = ', '.join(map(run_words, runs))
        words.append(f'{rate}: {each}')
    return '; '.join(words)


def run_words(run: Result) -> str:
    baseline, seed = seeds_of(run)
    return f'{score(run["finetuned"]):.2f} ({baseline}/{seed})'


def mean_gain(summary: Summary, other: Summary) -> str:
    """With how many of the runs it is of, if not of all."""
    differences = gains(summary, other)
    if not differences:
        return ''
    words, runs = f'{statistics.mean(differences):+.2f}', len(summary.runs)
    if len(differences) < runs:
        words += f' ({len(differences)} of {runs})'
    return words


def control_gain(summary: Summary, control: Summary) -> str:
    """Of the control's runs those that were trained alike; maybe none."""
    training = training_of(summary.runs[0])
    runs = [run for each in control.rates.values() for run in each]
    alike = [run for run in runs if training_of(run) == training]
    return mean_gain(summary, replace(control, runs=alike))


def training_of(run: Result) -> list[dict[str, float]]:
    """Epochs and rates of pruning and of fine-tuning."""
    return [run['phases'][name] for name in ('prune', 'finetune')]


def score_words(summary: Summary, phase: str = 'finetuned') -> str:
    values = summary.accuracies(phase)
    mean = f'{statistics.mean(values):.2f}'
    if min(values) == max(values):
        return mean
    return f'{mean} ({min(values):.2f} to {max(values):.2f})'


def at_half(summary: Summary) -> str:
    """AP at an IoU of 0.5, of detectors."""
    runs = [run['finetuned'] for run in summary.runs]
    if 'pascal_voc/AP50' not in runs[0]:
        return ''
    mean = statistics.mean(run['pascal_voc/AP50'] for run in runs)
    return f', AP50 {100 * mean:.1f}'


def latency_table(latency: Any, metrics: Sequence[str] = ()) -> list[str]:
    """Time to that of the baseline, in turn; medians of the rounds."""
    lines = [f'Time of a forward to that of the baseline{how(latency)}:', '']
    return [*lines, *ratio_rows(latency, metrics)]


def other_latency_table(latency: Any) -> list[str]:
    """The same on a GPU, in half precision or beside widths rounded."""
    words, lines = '', []
    metrics: Sequence[str] = ()
    if latency.get('device', 'cpu') == 'cuda':
        words += ' on a GPU'
    if latency.get('half'):
        words += ' in half precision'
    if latency['round_to'] > 1:
        multiple = latency['round_to']
        words += f' with multiples of {multiple} channels'
        metrics = ('flops', 'acts')
        lines += [
            'Each network as it comes and with its widths *rounded* to the '
            f'nearest multiple of {multiple}, which was neither trained nor '
            'tested; all in turn.',
            '',
        ]
    lines += latency_table(latency, metrics)
    return [f'## Latency{words}', '', *lines, '']


def how(latency: Any) -> str:
    """It was measured, and how far rounds lie from the median, as a rule."""
    machine = latency['machine']
    where = machine['device']
    if latency.get('device', 'cpu') == 'cpu':
        where = f'{machine["threads"]} threads of {where}'
    ratios = [
        network['ratio']
        for timing in latency['times']
        for name, network in timing['networks'].items()
        if name != 'baseline'
    ]
    off = statistics.median(
        max(r['most'] - r['median'], r['median'] - r['least']) for r in ratios
    )
    return (
        f' (medians of {latency["rounds"]} rounds in turn, of which the '
        f'furthest lies {off:.2f} off as a rule; ms of a picture; '
        f'{where}, {machine["date"]})'
    )


def ratio_rows(latency: Any, metrics: Sequence[str]) -> list[str]:
    """A row for each network, with what is left of metrics."""
    times = latency['times']
    columns = [f'{t["backend"]}, batch {t["batch"]}' for t in times]
    lines = [
        row('network', *metrics, *columns),
        row('---', *['---:'] * (len(metrics) + len(columns))),
    ]
    for name in times[0]['networks']:
        cells = []
        for metric in metrics:
            costs = latency['costs']
            share = costs[name][metric] / costs['baseline'][metric]
            cells.append(f'{share:.1%}')
        for timing in times:
            each = timing['networks'][name]
            words = f'{each["ratio"]["median"]:.2f}'
            if name == 'baseline':
                words += f' ({each["ms"]["median"]:.3g} ms)'
            cells.append(words)
        lines.append(row(f'`{name}`', *cells))
    return lines


def diagnosis_table(diagnosis: Any) -> list[str]:
    """Scores with other statistics and on pictures of training."""
    columns = [
        (f'{words}, {pictures}', phase, key)
        for words, phase in (
            ('before fine-tuning', 'pruned'),
            ('fine-tuned', 'finetuned'),
        )
        for pictures, key in (
            ('test', 'test'),
            ('statistics anew', 'anew'),
            ('training pictures', 'training'),
        )
    ]
    heads = [words for words, _, _ in columns]
    lines = [
        '## On test and on training pictures',
        '',
        'As they are; with statistics of BatchNorm made anew from training '
        'pictures; on training pictures without augmentation '
        f'({diagnosis["machine"]["device"]}, '
        f'{with_what(diagnosis["machine"]).rstrip(".")}):',
        '',
        row('network', 'seed', 'rate', *heads),
        row('---', *['---:'] * (len(heads) + 2)),
    ]
    for network in diagnosis['networks']:
        cells = [
            f'{network[phase][key]:.2f}' if phase in network else ''
            for _, phase, key in columns
        ]
        facts = [str(network['seed']), f'{network["lr"]:g}']
        lines.append(row(f'`{network["experiment"]}`', *facts, *cells))
    return [*lines, '']
