"""Write docs/accuracy.md and its figures from the results."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(ROOT / 'tools')]

from benchmark_report import row  # noqa: E402
from environment import with_what  # noqa: E402
from results import Summary, read_results, summaries  # noqa: E402

from mmgfp.figures import (  # noqa: E402
    BLUE,
    CYCLE,
    GREEN,
    GREY,
    ORANGE,
    new_figure,
    save_figure,
)
from mmgfp.files import complete  # noqa: E402

# of the flops are kept in most experiments
HALF = 0.5

FAMILIES = dict(
    fisher=(BLUE, 'o', 'Group Fisher (mmgfp)'),
    ours=(GREEN, 's', "other criterion, mmgfp's groups"),
    torch_pruning=(ORANGE, '^', 'Torch-Pruning'),
)

HEAD = """# Accuracy

Made by `python benchmarks/accuracy/report.py` from
`benchmarks/accuracy/results`. All experiments of a list begin with the same
trained network, run in the same training loop with the same data, target and
number of epochs, and differ in what chooses the channels:

- `fisher_*`: Group Fisher Pruning as `mmgfp.FisherPruningHook` does it, scores
  divided by the acts or flops that a channel saves, or by nothing; `internal`
  with channels that one layer makes and one reads only.
- `ours_*`: another criterion with mmgfp's channel groups, pace and surgery.
- `torch_pruning_*`: Torch-Pruning with its own groups, importance and surgery,
  global, at the same pace.

Channels go in equal amounts of flops every few iterations of the pruning
phase. The learning rate of fine-tuning is chosen for each experiment from the
same grid, with the first seed; the column *rates* has what each gave. Given
are the mean over seeds and, in brackets, the least and the greatest.
"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        description=__doc__,
        epilog='example: python benchmarks/accuracy/report.py',
    )
    parser.add_argument('--results', type=Path, default=HERE / 'results')
    parser.add_argument('--out', type=Path, default=ROOT / 'docs')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    text = [HEAD]
    findings = HERE / 'findings.md'  # written by hand
    if findings.exists():
        text.append(findings.read_text())
    for file in sorted(args.results.glob('*.jsonl')):
        found = summaries(read_results(file))
        if set(found) == {'baseline'}:
            continue
        timed = file.with_name(f'{file.stem}_latency.json')
        latency = json.loads(timed.read_text()) if timed.exists() else None
        picture = args.out / 'accuracy' / f'{file.stem}.png'
        picture.parent.mkdir(exist_ok=True)
        draw(found, latency, picture)
        text += section(file.stem, found, latency)
        text += ['', f'![Accuracy against cost](accuracy/{picture.name})', '']
        if latency is not None:
            picture = picture.with_stem(f'{file.stem}_speed')
            draw_speed(found, latency, picture)
            text += [f'![Time against cost](accuracy/{picture.name})', '']
        kept = {
            name.removeprefix('fisher_'): kept_by_stage(summary)
            for name, summary in found.items()
            if name.startswith('fisher') and summary.target == HALF
        }
        if kept:
            picture = picture.with_stem(f'{file.stem}_kept')
            draw_kept(kept, picture)
            text += [f'![Channels kept](accuracy/{picture.name})', '']
    with complete(args.out / 'accuracy.md') as partial:
        Path(partial).write_text('\n'.join(text))


def section(
    name: str, found: Mapping[str, Summary], latency: Any
) -> list[str]:
    """Words and tables of a list."""
    baseline = found['baseline']
    config = Config.fromfile(HERE / 'configs' / name / 'baseline.py')
    others = [s for n, s in found.items() if n != 'baseline']
    others.sort(key=lambda s: -s.accuracy())
    # the baseline may have been trained when other phases were planned
    phases = (others or [baseline])[0].runs[0]['phases']
    where = baseline.runs[0]['machine']
    epochs = {k: v['epochs'] for k, v in phases.items()}
    peer = next(
        (s for s in others if s.name.startswith('torch_pruning')), None
    )
    with_peer = peer.runs[0].get('torch_pruning') if peer else None
    days = sorted(r['machine']['date'] for s in found.values() for r in s.runs)
    lines = [
        f'## {config.title}',
        '',
        f'Given is the {config.metric}. Baseline: '
        f'{score_words(baseline, "pruned")} before and '
        f'{score_words(baseline)}{at_half(baseline)} after '
        f'{epochs["baseline"]} epochs on these files. Pruning: '
        f'{epochs["prune"]} epochs at a learning rate of '
        f'{phases["prune"]["lr"]:g}; fine-tuning: {epochs["finetune"]} epochs '
        f'with a cosine to zero. {with_what(where)}'
        + (f' Torch-Pruning {with_peer}.' if with_peer else '')
        + fine_tuned_only(found.get('unpruned'))
        + f' Run {days[0]}'
        + (f' to {days[-1]}.' if days[-1] != days[0] else '.'),
        '',
        '```bash',
        *config.commands.strip().splitlines(),
        '```',
        '',
    ]
    ablations = [s for s in others if s.name.startswith('ablation')]
    for target in sorted({s.target for s in others if s.target}, reverse=True):
        rows = [s for s in others if s.target == target]
        rows = [s for s in rows if s not in ablations]
        lines += [f'### {target:.0%} of the flops', '']
        lines += [*accuracy_table(rows, baseline), *paired(rows)]
    if ablations:
        default = [found['fisher_acts'], *ablations]
        lines += [
            '### Ablations',
            '',
            '`fisher_acts` to half of the flops, changed in one way each:',
            '',
            *accuracy_table(default, baseline),
            '',
        ]
    if latency is not None:
        lines += ['### Latency', '', *latency_table(latency)]
    return lines


def fine_tuned_only(control: Summary | None) -> str:
    """What the baseline becomes when it is trained on like the others."""
    if control is None:
        return ''
    words = f'{score_words(control)}{at_half(control)}'
    return f' Fine-tuned without pruning, the baseline comes to {words}.'


def paired(rows: Sequence[Summary]) -> list[str]:
    """The best of Group Fisher less each peer, seed by seed."""
    best = next((s for s in rows if s.name.startswith('fisher')), None)
    peers = [s for s in rows if not s.name.startswith('fisher')]
    if best is None or not peers:
        return ['']
    words = []
    for peer in peers:
        ours, theirs = best.by_seed(), peer.by_seed()
        gains = [ours[seed] - theirs[seed] for seed in ours if seed in theirs]
        if gains:
            each = ', '.join(f'{gain:+.2f}' for gain in gains)
            mean = f'**{statistics.mean(gains):+.2f}**'
            words.append(f'`{peer.name}` {mean} ({each})')
    return [
        '',
        f'`{best.name}` less each other criterion, mean and seed by seed: '
        + '; '.join(words)
        + '.',
        '',
    ]


def accuracy_table(rows: Sequence[Summary], baseline: Summary) -> list[str]:
    head = ['experiment', 'seeds', 'pruned', 'fine-tuned', 'to the baseline']
    head += ['flops', 'acts', 'params', 'rates']
    lines = [row(*head), row('---', *['---:'] * (len(head) - 2), '---')]
    for summary in rows:
        lines.append(
            row(
                f'`{summary.name}`',
                str(len(summary.runs)),
                score_words(summary, 'pruned'),
                score_words(summary) + at_half(summary),
                f'{summary.accuracy() - baseline.accuracy():+.2f}',
                *(
                    f'{summary.share(m):.1%}'
                    for m in ('flops', 'acts', 'params')
                ),
                ', '.join(
                    (
                        '**{:g}** {:.2f}'
                        if lr == summary.lr
                        else '{:g} {:.2f}'
                    ).format(lr, value)
                    for lr, value in sorted(summary.tuning.items())
                ),
            )
        )
    return lines


def score_words(summary: Summary, phase: str = 'finetuned') -> str:
    values = summary.accuracies(phase)
    mean = f'{statistics.mean(values):.2f}'
    if len(values) == 1:
        return mean
    return f'{mean} ({min(values):.2f} to {max(values):.2f})'


def at_half(summary: Summary) -> str:
    """AP at an IoU of 0.5, of detectors."""
    runs = [run['finetuned'] for run in summary.runs]
    if 'pascal_voc/AP50' not in runs[0]:
        return ''
    mean = statistics.mean(run['pascal_voc/AP50'] for run in runs)
    return f', AP50 {100 * mean:.1f}'


def latency_table(latency: Any) -> list[str]:
    """Time to that of the baseline, in turn; medians of the rounds."""
    columns = [f'{t["backend"]}, batch {t["batch"]}' for t in latency['times']]
    lines = [
        'Time of a forward to that of the baseline (medians of '
        f'{latency["rounds"]} rounds in turn; {latency["machine"]["threads"]} '
        f'threads of {latency["machine"]["device"]}):',
        '',
        row('network', *columns),
        row('---', *['---:'] * len(columns)),
    ]
    for name in latency['times'][0]['networks']:
        cells = []
        for timing in latency['times']:
            each = timing['networks'][name]
            cells.append(f'{each["ratio"]["median"]:.3f}')
        lines.append(row(f'`{name}`', *cells))
    return lines


def draw(found: Mapping[str, Summary], latency: Any, path: Path) -> None:
    """Accuracy against what is left of flops, acts and latency."""
    panels: list[tuple[str, dict[str, float]]] = [
        (f'{metric} left', {n: s.share(metric) for n, s in found.items()})
        for metric in ('flops', 'acts')
    ]
    for timing in (latency or dict(times=[]))['times']:
        each = timing['networks']
        panels.append(
            (
                f'latency left, {timing["backend"]}, batch {timing["batch"]}',
                {n: each[n]['ratio']['median'] for n in each},
            )
        )
    found = {n: s for n, s in found.items() if not n.startswith('ablation')}
    rows = -(-len(panels) // 3)
    columns = -(-len(panels) // rows)
    figure = new_figure(4.2 * columns, 4.6 * rows)
    axes = figure.subplots(rows, columns, sharey=True, squeeze=False)
    for panel, (label, places) in zip(axes.flat, panels):
        draw_panel(panel, found, places)
        panel.set_xlabel(label)
    for panel in axes[:, 0]:
        panel.set_ylabel('accuracy after fine-tuning')
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc='outside lower center', ncols=4, frameon=False
    )
    save_figure(figure, path)


def draw_speed(found: Mapping[str, Summary], latency: Any, path: Path) -> None:
    """Time against what is left of flops and acts (the paper's Fig. 6)."""
    times = latency['times']
    figure = new_figure(3.2 * len(times), 3.6)
    for axes, timing in zip(
        figure.subplots(1, len(times), squeeze=False)[0], times
    ):
        networks = timing['networks']
        took = [each['ratio']['median'] for each in networks.values()]
        for metric, colour, marker in (
            ('flops', ORANGE, '^'),
            ('acts', BLUE, 'o'),
        ):
            left = [found[name].share(metric) for name in networks]
            label = f'{metric}, r = {statistics.correlation(left, took):.2f}'
            axes.scatter(
                left, took, s=14, c=colour, marker=marker, label=label
            )
        axes.set_title(
            f'{timing["backend"]}, batch {timing["batch"]}', fontsize=10
        )
        axes.set_xlabel('share left')
        axes.legend(
            loc='upper center', bbox_to_anchor=(0.5, -0.17), frameon=False
        )
        axes.spines[['top', 'right']].set_visible(False)
    figure.axes[0].set_ylabel("time / the baseline's")
    save_figure(figure, path)


def kept_by_stage(summary: Summary) -> dict[str, float]:
    """Share of the channels that is left, in the order of the network."""
    left: dict[str, int] = defaultdict(int)
    full: dict[str, int] = defaultdict(int)
    for run in summary.runs:
        for layer, (after, before) in run['widths'].items():
            stage = stage_of(layer)
            left[stage] += after
            full[stage] += before
    return {stage: left[stage] / full[stage] for stage in full}


def stage_of(layer: str) -> str:
    """'backbone.layer1', 'neck' or 'bbox_head.cls_convs'."""
    part, *rest = layer.split('.')
    return part if part == 'neck' else f'{part}.{rest[0]}'


def draw_kept(kept: Mapping[str, Mapping[str, float]], path: Path) -> None:
    """Bars by stage and normalisation, but for what predicts."""
    stages = [s for s in next(iter(kept.values())) if '.conv_' not in s]
    stages = [s for s in stages if '.retina_' not in s]
    figure = new_figure(8, 3.2)
    axes = figure.add_subplot()
    width = 0.8 / len(kept)
    for i, ((name, shares), colour) in enumerate(zip(kept.items(), CYCLE)):
        places = [x + (i + 0.5) * width - 0.4 for x in range(len(stages))]
        values = [shares[stage] for stage in stages]
        axes.bar(places, values, width, color=colour, label=name)
    axes.set_xticks(range(len(stages)), [s.replace('.', '\n') for s in stages])
    axes.tick_params(axis='x', labelsize=8)
    axes.set_ylabel('channels kept')
    axes.yaxis.set_major_formatter(lambda value, _: f'{value:.0%}')
    axes.spines[['top', 'right']].set_visible(False)
    figure.legend(loc='outside upper left', ncols=4, frameon=False)
    save_figure(figure, path)


def draw_panel(
    axes: Any, found: Mapping[str, Summary], places: Mapping[str, float]
) -> None:
    for name, style, label in (
        ('baseline', '-', 'baseline'),
        ('unpruned', ':', 'baseline, fine-tuned too'),
    ):
        if name in found:
            height = found[name].accuracy()
            axes.axhline(height, color=GREY, linestyle=style, label=label)
    seen = set()
    for name, summary in found.items():
        family = next((f for f in FAMILIES if name.startswith(f)), None)
        if family is None or name not in places:
            continue
        colour, marker, label = FAMILIES[family]
        mean, values = summary.accuracy(), summary.accuracies()
        axes.errorbar(
            places[name],
            mean,
            yerr=[[mean - min(values)], [max(values) - mean]],
            color=colour,
            marker=marker,
            capsize=3,
            linestyle='',
            label=None if family in seen else label,
        )
        seen.add(family)
    spread_names(axes, found, places)
    axes.spines[['top', 'right']].set_visible(False)


def spread_names(
    axes: Any, found: Mapping[str, Summary], places: Mapping[str, float]
) -> None:
    """Names at the right edge, moved apart, with lines to the points."""
    names = [n for n in places if n in found and found[n].target]
    names.sort(key=lambda n: found[n].accuracy())
    low = min(found[n].accuracy() for n in names)
    high = max([found[n].accuracy() for n in names])
    gap = max(high - low, 0.1) / max(1, len(names) - 1)
    right = max(places[n] for n in names)
    left = min(places[n] for n in names)
    width = max(right - left, 0.01)
    axes.set_xlim(left - 0.08 * width, right + 0.95 * width)
    for i, name in enumerate(names):
        y = low + i * gap
        axes.plot(
            [places[name], right + 0.1 * width],
            [found[name].accuracy(), y],
            color=GREY,
            linewidth=0.6,
            zorder=0,
        )
        axes.text(right + 0.12 * width, y, name, fontsize=7, va='center')


if __name__ == '__main__':
    main()
