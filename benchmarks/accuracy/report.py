"""Write docs/accuracy.md and its figures from the results."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.lines import Line2D
from mmengine.config import Config

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(ROOT / 'tools')]

from benchmark_report import row  # noqa: E402
from environment import with_what  # noqa: E402
from results import (  # noqa: E402
    Result,
    Summary,
    read_results,
    score,
    seeds_of,
    summaries,
)

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

# what the others are compared with
DEFAULT = 'fisher_acts'

FAMILIES = dict(
    fisher=(BLUE, 'o', 'Group Fisher (mmgfp)'),
    ours=(GREEN, 's', "other criterion, mmgfp's groups"),
    torch_pruning=(ORANGE, '^', 'Torch-Pruning'),
)

# networks, whose correlation would say nothing
FEW = 4

LINES = (('baseline', '-', 'baseline'), ('unpruned', ':', 'control'))


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
    # written by hand
    parts = ('introduction', 'findings')
    text = [(HERE / f'{part}.md').read_text() for part in parts]
    for file in sorted(args.results.glob('*.jsonl')):
        found = summaries(read_results(file))
        if not any(summary.target for summary in found.values()):
            continue  # nothing was pruned yet
        latency = beside(file, 'latency')
        picture = args.out / 'accuracy' / f'{file.stem}.png'
        picture.parent.mkdir(parents=True, exist_ok=True)
        config = Config.fromfile(HERE / 'configs' / file.stem / 'baseline.py')
        draw(found, latency, config.metric, picture)
        text += section(config, found, latency)
        text += ['', f'![Accuracy against cost](accuracy/{picture.name})', '']
        if latency is not None:
            picture = picture.with_stem(f'{file.stem}_speed')
            draw_speed(found, latency, picture)
            text += [f'![Time against cost](accuracy/{picture.name})', '']
        for other in sorted(args.results.glob(f'{file.stem}_latency_*.json')):
            text += other_latency_table(json.loads(other.read_text()))
        kept = {
            name.removeprefix('fisher_'): kept_by_stage(summary)
            for name, summary in found.items()
            if name.startswith('fisher') and summary.target == HALF
        }
        if kept:
            picture = picture.with_stem(f'{file.stem}_kept')
            draw_kept(kept, picture)
            text += [f'![Channels kept](accuracy/{picture.name})', '']
        diagnosis = beside(file, 'diagnosis')
        if diagnosis is not None:
            text += diagnosis_table(diagnosis)
    with complete(args.out / 'accuracy.md') as partial:
        Path(partial).write_text('\n'.join(text))


def beside(file: Path, what: str) -> Any:
    """What else was found of a list; None if nothing."""
    path = file.with_name(f'{file.stem}_{what}.json')
    return json.loads(path.read_text()) if path.exists() else None


def section(
    config: Config, found: Mapping[str, Summary], latency: Any
) -> list[str]:
    """Words and tables of a list."""
    others = [s for s in found.values() if s.target]
    others.sort(key=lambda s: -s.gain())
    lines = [f'## {config.title}', '', *config.about.strip().splitlines(), '']
    lines += [f'- {fact}' for fact in facts(config, found)]
    lines += ['', '```bash', *config.commands.strip().splitlines(), '```', '']
    ablations = [s for s in others if s.name.startswith('ablation')]
    for target in sorted({s.target for s in others}, reverse=True):
        rows = [s for s in others if s.target == target]
        rows = [s for s in rows if s not in ablations]
        lines += [f'### {target:.0%} of the flops', '']
        lines += [*accuracy_table(rows, found), *same_channels(rows)]
        lines += paired(rows)
    if ablations:
        usual = {f'− `{n}`': found[n] for n in (DEFAULT,) if n in found}
        # most are trained otherwise than the control
        alone = {n: s for n, s in found.items() if n != 'unpruned'}
        lines += [
            '### Ablations',
            '',
            '`fisher_acts` to half of the flops, changed as the name says:',
            '',
            *accuracy_table(ablations, alone, usual),
            '',
            *purposes(config, ablations),
            '',
        ]
    if latency is not None:
        lines += ['### Latency', '', *latency_table(latency)]
    return lines


def purposes(config: Config, rows: Sequence[Summary]) -> list[str]:
    """The comments at the top of configs that have one."""
    words = []
    for name in (summary.name for summary in rows):
        path = Path(config.filename).with_name(f'{name}.py')
        lines = path.read_text().splitlines()
        top = takewhile(lambda line: line.startswith('#'), lines)
        comment = ' '.join(line.removeprefix('# ') for line in top)
        if comment:
            words.append(f'- `{name}`: {comment}')
    return words


def facts(config: Config, found: Mapping[str, Summary]) -> list[str]:
    """How it was done: phases, settings, machine, versions, dates."""
    baseline = found['baseline']
    settings = config.optim_wrapper
    optimizer = dict(settings.optimizer)
    optimizer.pop('lr')
    numbers = ', '.join(
        f'{key.replace("_", " ")} {value:g}'
        for key, value in optimizer.items()
        if key != 'type'
    )
    extras = ''
    if settings.get('paramwise_cfg'):
        extras += ', no decay of norms and biases'
    if settings.get('clip_grad'):
        extras += f', gradients clipped to {settings.clip_grad.max_norm:g}'
    pruning = Config.fromfile(
        Path(config.filename).with_name(f'{DEFAULT}.py')
    ).pruning
    rates = [
        each for summary in found.values() for each in summary.rates.values()
    ]
    runs = [run for runs in rates for run in runs]
    peers = {run['torch_pruning'] for run in runs if 'torch_pruning' in run}
    each = ''
    if len(baseline.runs) > 1:
        scores = baseline.by_seed().items()
        words = ', '.join(
            f'{of:.2f} with seed {seed}' for (seed, _), of in scores
        )
        each = f' ({words})'
    before = ''
    if baseline.accuracy('pruned'):  # random weights detect nothing
        before = f'{score_words(baseline, "pruned")} before, '
    lines = [
        f'Given is the {config.metric}.',
        f'Baseline: {before}{baseline.accuracy():.2f}{each}'
        f'{at_half(baseline)} after '
        f'{config.baseline.epochs} epochs at a learning rate of '
        f'{config.baseline.lr:g}, which falls to zero with a cosine'
        f'{rise(config.baseline)}.',
        f'Pruning: {config.prune.epochs} epochs at {config.prune.lr:g}, a '
        f'step every {pruning.interval} iterations, then '
        f'{config.finetune.epochs} epochs of fine-tuning with a cosine'
        f'{rise(config.finetune)}.',
        f'{optimizer["type"]}, {numbers}, batches of '
        f'{config.train_dataloader.batch_size}{extras}.',
        f'The whole network: {cost_words(baseline.runs[0]["cost"])}, at '
        f'{config.input_shape[1]}x{config.input_shape[0]} pixels.',
        *machines(runs),
        *(f'Torch-Pruning {version}.' for version in sorted(peers)),
    ]
    controls = [s for name, s in found.items() if name.startswith('unpruned')]
    lines[2:2] = [control_words(control, config) for control in controls]
    return lines


def cost_words(cost: Mapping[str, int]) -> str:
    return ', '.join(
        f'{cost[metric] / 1e6:.2f} M {metric}'
        for metric in ('flops', 'params', 'acts')
    )


def control_words(control: Summary, config: Config) -> str:
    """What came of training without losing a channel."""
    words = f'{score_words(control)}{at_half(control)}'
    epochs = control.runs[0]['phases']['finetune']['epochs']
    longer = ''
    if epochs != config.finetune.epochs:
        longer = f' with {epochs} epochs of fine-tuning'
    gain = f'{control.gain():+.2f}'
    each = rates_words(control)
    return f'Control{longer}: {words}; {gain} to its baseline. {each}.'


def machines(runs: Sequence[Result]) -> list[str]:
    """Where each of the baselines was trained, and what began with it."""
    places: dict[tuple[Any, ...], list[Result]] = defaultdict(list)
    # the machine of the baseline comes first
    for run in sorted(runs, key=lambda run: run['experiment'] != 'baseline'):
        machine = run['machine']
        # the first runs do not say in what
        exact = run.get('precision', 'bfloat16')
        place = (machine['device'], exact, with_what(dict(machine, date='')))
        places[(run['baseline_seed'], *place)].append(run)
    lines = []
    for (seed, device, exact, _), together in sorted(
        places.items(), key=lambda place: place[0][0]
    ):
        whose = ''
        if len(places) > 1:
            begun = [r for r in together if r['experiment'] != 'baseline']
            of = sorted({run['seed'] for run in begun})
            runs_of = f'runs of seed {" ".join(map(str, of))}'
            if begun == together:
                whose = f'With the baseline of seed {seed}, {runs_of}: '
            elif begun:
                whose = f'Baseline of seed {seed} and {runs_of}: '
            else:
                whose = f'Baseline of seed {seed}: '
        days = sorted(run['machine']['date'] for run in together)
        machine = dict(together[0]['machine'], date=span(days))
        lines.append(f'{whose}{device}, {exact}, {with_what(machine)}')
    return lines


def rise(phase: Mapping[str, float]) -> str:
    """Where the rate begins small."""
    if 'warmup' not in phase:
        return ''
    return f' after a rise over {phase["warmup"]} iterations'


def span(days: Sequence[str]) -> str:
    """From the first to the last."""
    return days[0] if days[0] == days[-1] else f'{days[0]} to {days[-1]}'


def same_channels(rows: Sequence[Summary]) -> list[str]:
    """Rows that chose as `fisher_acts` did."""
    usual = next((s for s in rows if s.name == DEFAULT), None)
    if usual is None:
        return []
    widths = {seeds_of(run): run['widths'] for run in usual.runs}
    return [
        f'\n`{other.name}` has the channels of `{DEFAULT}` with every seed.'
        for other in rows
        if other is not usual
        and all(widths.get(seeds_of(r)) == r['widths'] for r in other.runs)
    ]


def paired(rows: Sequence[Summary]) -> list[str]:
    """The usual way less each peer, seed by seed."""
    usual = next((s for s in rows if s.name.startswith(DEFAULT)), None)
    peers = [s for s in rows if not s.name.startswith('fisher')]
    if usual is None or not peers:
        return ['']
    words = []
    for peer in peers:
        differences = gains(usual, peer)
        if differences:
            each = ', '.join(f'{gain:+.2f}' for gain in differences)
            mean = f'**{statistics.mean(differences):+.2f}**'
            words.append(f'`{peer.name}` {mean} ({each})')
    if not words:
        return ['']
    return [
        '',
        f'`{usual.name}` less each other criterion, mean and run by run: '
        + '; '.join(words)
        + '.',
        '',
    ]


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
    """Empty where the control was trained otherwise."""
    same = training_of(summary) == training_of(control)
    return mean_gain(summary, control) if same else ''


def training_of(summary: Summary) -> list[dict[str, float]]:
    """Epochs and rates of pruning and of fine-tuning."""
    return [summary.runs[0]['phases'][name] for name in ('prune', 'finetune')]


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
    """The same on a GPU, in half precision or with widths rounded."""
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
            f'The same widths, rounded to the nearest multiple of {multiple}; '
            'neither trained nor tested.',
            '',
        ]
    lines += latency_table(latency, metrics)
    return [f'### Latency{words}', '', *lines, '']


def how(latency: Any) -> str:
    """It was measured."""
    machine = latency['machine']
    where = machine['device']
    if latency.get('device', 'cpu') == 'cpu':
        where = f'{machine["threads"]} threads of {where}'
    return (
        f' (medians of {latency["rounds"]} rounds in turn; {where}, '
        f'{machine["date"]})'
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
        '### On test and on training pictures',
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


def draw(
    found: Mapping[str, Summary], latency: Any, metric: str, path: Path
) -> None:
    """Accuracy lost against what is left of flops, acts and latency.

    Of the flops only where there are several targets, of latency with the
    largest batch.
    """
    found = {n: s for n, s in found.items() if not n.startswith('ablation')}
    kept = ['acts']
    if several_targets(found):
        kept.insert(0, 'flops')
    panels: list[tuple[str, dict[str, float]]] = [
        (f'{metric} left', {n: s.share(metric) for n, s in found.items()})
        for metric in kept
    ]
    times = latency['times'] if latency else []
    for timing in times:
        if timing['batch'] == max(t['batch'] for t in times):
            each = timing['networks']
            label = f'{timing["backend"]}, batch {timing["batch"]}'
            panels.append(
                (
                    f'latency left, {label}',
                    {n: each[n]['ratio']['median'] for n in each},
                )
            )
    rows = (len(panels) + 1) // 2
    figure = new_figure(5.6 * min(2, len(panels)), 0.6 + 4.2 * rows)
    axes = figure.subplots(rows, -(-len(panels) // rows), sharey=True)
    for panel, (label, places) in zip(np.ravel(axes), panels):
        draw_panel(panel, found, places)
        panel.set_xlabel(label)
        if panel.get_subplotspec().is_first_col():
            words = f'{metric}, fine-tuned,\nless that of the baseline'
            panel.set_ylabel(words)
    for unused in np.ravel(axes)[len(panels) :]:
        unused.remove()
    figure.legend(
        handles=legend_of(found),
        title='mean and range over runs; hollow: one run',
        loc='outside lower center',
        ncols=2,
        frameon=False,
    )
    save_figure(figure, path)


def legend_of(found: Mapping[str, Summary]) -> list[Line2D]:
    """What lines and markers stand for, if there are such."""
    handles = [
        Line2D([], [], color=GREY, linestyle=style, label=label)
        for name, style, label in LINES
        if name in found
    ]
    return handles + [
        Line2D([], [], color=colour, marker=marker, linestyle='', label=label)
        for family, (colour, marker, label) in FAMILIES.items()
        if any(name.startswith(family) for name in found)
    ]


def several_targets(found: Mapping[str, Summary]) -> bool:
    """Or all have about the same flops, that nothing can follow."""
    return len({s.target for s in found.values() if s.target}) > 1


def draw_speed(found: Mapping[str, Summary], latency: Any, path: Path) -> None:
    """Time against what is left of flops and acts (the paper's Fig. 6).

    The correlation is that of the pruned networks; with flops only where
    those differ.
    """
    times = latency['times']
    marks = {'acts': (BLUE, 'o'), 'flops': (ORANGE, '^')}
    measured = {n: found[n] for n in times[0]['networks'] if n in found}
    if not several_targets(measured):
        del marks['flops']
    figure = new_figure(3.2 * len(times), 3.6)
    panels = figure.subplots(1, len(times), squeeze=False)[0]
    for axes, timing in zip(panels, times):
        networks = {n: t for n, t in timing['networks'].items() if n in found}
        pruned = [name for name in networks if found[name].target]
        took = [networks[name]['ratio']['median'] for name in pruned]
        for metric, (colour, marker) in marks.items():
            # the network that was measured is that of the first seed
            left = [found[name].runs[0]['shares'][metric] for name in pruned]
            label = f'{metric} left'
            if len(set(left)) > 1 and len(left) > FEW:
                label += f', r = {statistics.correlation(left, took):.2f}'
            axes.scatter(
                left, took, s=14, c=colour, marker=marker, label=label
            )
        axes.scatter([1], [1], s=20, c=GREY, marker='x', label='baseline')
        axes.set_title(
            f'{timing["backend"]}, batch {timing["batch"]}', fontsize=10
        )
        axes.set_xlabel('share left')
        axes.legend(
            loc='upper center', bbox_to_anchor=(0.5, -0.17), frameon=False
        )
        axes.spines[['top', 'right']].set_visible(False)
    panels[0].set_ylabel("time / the baseline's")
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
    """'backbone.layer1 inner', 'neck' or 'bbox_head.cls_convs'.

    The first convolution of a block of two is read by the second alone; what
    the second writes is added to the stream of the stage.
    """
    part, *rest = layer.split('.')
    if part == 'neck':
        return part
    stage = f'{part}.{rest[0]}'
    if rest[0].startswith('layer'):
        stage += ' inner' if rest[-1] == 'conv1' else ' stream'
    return stage


def draw_kept(kept: Mapping[str, Mapping[str, float]], path: Path) -> None:
    """Bars by stage and normalisation, but for what predicts."""
    stages = [s for s in next(iter(kept.values())) if '.conv_' not in s]
    stages = [s for s in stages if '.retina_' not in s]
    figure = new_figure(1.5 + 0.72 * len(stages), 3.4)
    axes = figure.add_subplot()
    width = 0.8 / len(kept)
    for i, ((name, shares), colour) in enumerate(zip(kept.items(), CYCLE)):
        places = [x + (i + 0.5) * width - 0.4 for x in range(len(stages))]
        values = [shares[stage] for stage in stages]
        axes.bar(places, values, width, color=colour, label=name)
    labels = [s.replace('.', '\n').replace(' ', '\n') for s in stages]
    axes.set_xticks(range(len(stages)), labels)
    axes.tick_params(axis='x', labelsize=8)
    axes.set_ylabel('channels kept')
    axes.yaxis.set_major_formatter(lambda value, _: f'{value:.0%}')
    axes.spines[['top', 'right']].set_visible(False)
    figure.legend(
        title='fisher_*',
        alignment='left',
        loc='outside upper left',
        ncols=4,
        frameon=False,
    )
    save_figure(figure, path)


def draw_panel(
    axes: Any, found: Mapping[str, Summary], places: Mapping[str, float]
) -> None:
    for name, style, _ in LINES:
        if name in found:
            axes.axhline(found[name].gain(), color=GREY, linestyle=style)
    for name, summary in found.items():
        family = next((f for f in FAMILIES if name.startswith(f)), None)
        if family is None or name not in places:
            continue
        colour, marker, _ = FAMILIES[family]
        mean, values = summary.gain(), summary.gains()
        axes.errorbar(
            places[name],
            mean,
            yerr=[[mean - min(values)], [max(values) - mean]],
            color=colour,
            marker=marker,
            # hollow: one run, whose spread is not known
            markerfacecolor='white' if len(values) == 1 else colour,
            capsize=3,
            linestyle='',
        )
    spread_names(axes, found, places)
    axes.spines[['top', 'right']].set_visible(False)


def spread_names(
    axes: Any, found: Mapping[str, Summary], places: Mapping[str, float]
) -> None:
    """Names at the right edge, moved apart, with lines to the points."""
    names = [n for n in places if n in found and found[n].target]
    names.sort(key=lambda n: found[n].gain())
    low = min(found[n].gain() for n in names)
    high = max(found[n].gain() for n in names)
    gap = max(high - low, 0.1) / max(1, len(names) - 1)
    right = max(places[n] for n in names)
    left = min(places[n] for n in names)
    width = max(right - left, 0.01)
    # no ticks under the names
    edge = right + 0.1 * width
    axes.set_xticks([t for t in axes.get_xticks() if left <= t <= edge])
    axes.set_xlim(left - 0.08 * width, right + 0.95 * width)
    for i, name in enumerate(names):
        y = low + i * gap
        axes.plot(
            [places[name], right + 0.1 * width],
            [found[name].gain(), y],
            color=GREY,
            linewidth=0.6,
            zorder=0,
        )
        axes.text(right + 0.12 * width, y, name, fontsize=7, va='center')


if __name__ == '__main__':
    main()
