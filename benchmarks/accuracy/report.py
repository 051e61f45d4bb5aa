"""Write a page with figures for each list of experiments."""

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

from mmengine.config import Config

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(HERE.parent / 'speed')]

from report_figures import (  # noqa: E402
    draw,
    draw_kept,
    draw_speed,
    kept_by_stage,
)
from report_tables import (  # noqa: E402
    accuracy_table,
    at_half,
    diagnosis_table,
    gains,
    latency_table,
    other_latency_table,
    rates_words,
    score_words,
)
from results import Result, Summary, read_results, seeds_of, summaries  # noqa: E402

from mmgfp.utils.atomic import complete  # noqa: E402
from mmgfp.utils.environment import with_what  # noqa: E402

# of the flops are kept in most experiments
HALF = 0.5

# what the others are compared with
DEFAULT = 'fisher_acts'


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        description=__doc__,
        epilog='example: python benchmarks/accuracy/report.py',
    )
    parser.add_argument('--results', type=Path, default=HERE / 'results')
    parser.add_argument('--out', type=Path, default=ROOT / 'docs/accuracy')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for file in sorted(args.results.glob('*.jsonl')):
        found = summaries(read_results(file))
        # nothing was pruned yet without a target
        if any(summary.target for summary in found.values()):
            text = page(file, found, args.out)
            with complete(args.out / f'{file.stem}.md') as partial:
                Path(partial).write_text('\n'.join(text))


def page(file: Path, found: Mapping[str, Summary], out: Path) -> list[str]:
    """The lines of a list's page; its figures are drawn."""
    latency = beside(file, 'latency')
    config = Config.fromfile(HERE / 'configs' / file.stem / 'baseline.py')
    picture = out / f'{file.stem}.png'
    draw(found, latency, config.metric, picture)
    text = section(config, found, latency)
    text += ['', f'![Accuracy against cost]({picture.name})', '']
    if latency is not None:
        picture = out / f'{file.stem}_speed.png'
        draw_speed(found, latency, picture)
        text += [f'![Time against cost]({picture.name})', '']
        text += ['The networks of the table, time beside cost.', '']
    for other in sorted(file.parent.glob(f'{file.stem}_latency_*.json')):
        text += other_latency_table(json.loads(other.read_text()))
    kept = {
        name.removeprefix('fisher_'): kept_by_stage(summary)
        for name, summary in found.items()
        if name.startswith('fisher') and summary.target == HALF
    }
    if kept:
        picture = out / f'{file.stem}_kept.png'
        draw_kept(kept, picture)
        text += [f'![Channels kept]({picture.name})', '']
        text += [
            'Of all runs in the mean: *inner* is what the first '
            'convolution of a block writes and the second alone reads, '
            '*stream* what the blocks of a stage add up.',
            '',
        ]
    diagnosis = beside(file, 'diagnosis')
    if diagnosis is not None:
        text += diagnosis_table(diagnosis)
    return text


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
    lines = [f'# {config.title}', '', *config.about.strip().splitlines(), '']
    lines += [f'- {fact}' for fact in facts(config, found)]
    lines += ['', '```bash', *config.commands.strip().splitlines(), '```', '']
    ablations = [s for s in others if s.name.startswith('ablation')]
    for target in sorted({s.target for s in others}, reverse=True):
        rows = [s for s in others if s.target == target]
        rows = [s for s in rows if s not in ablations]
        lines += [f'## {target:.0%} of the flops', '']
        lines += [*accuracy_table(rows, found), *same_channels(rows)]
        lines += paired(rows)
    if ablations:
        usual = {f'− `{n}`': found[n] for n in (DEFAULT,) if n in found}
        # most are trained otherwise than the control
        alone = {n: s for n, s in found.items() if n != 'unpruned'}
        lines += [
            '## Ablations',
            '',
            '`fisher_acts` to half of the flops, changed as the name says:',
            '',
            *accuracy_table(ablations, alone, usual),
            '',
            *purposes(config, ablations),
            '',
        ]
    if latency is not None:
        lines += ['## Latency', '', *latency_table(latency)]
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


if __name__ == '__main__':
    main()
