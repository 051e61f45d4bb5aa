"""Write a page with tables and a figure for each list of methods.py."""

from __future__ import annotations

import argparse
import statistics
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt
from mmengine.config import Config

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(HERE))

from results import read_results  # noqa: E402

from mmgfp.utils.atomic import complete  # noqa: E402
from mmgfp.utils.environment import with_what  # noqa: E402

Runs = Sequence[Mapping[str, Any]]  # of one experiment, by seed

NAMES = {
    'fisher': 'Fisher',
    'fisher_acts': 'Fisher per activation',
    'fisher_flops': 'Fisher per multiply-accumulate',
    'taylor': 'Taylor',
    'l1': 'L1',
    'nap': 'NAP',
    'nap_acts': "NAP, normalize_by='acts'",
    'nap_acts_compensate': "NAP, normalize_by='acts', compensate=True",
    'nap_pi_sum': "NAP, damping='pi', formula='OBS', aggregate='sum'",
    'nap_pi_block': "NAP, damping='pi', formula='OBS'",
    'uniform': 'uniform widths, L1',
    'knapsack': 'Knapsack on Fisher, 10 steps',
    'dcss': 'DCSS on Fisher',
    'dcss_one_level': 'DCSS on Fisher, split=0',
    'dcss_share': 'DCSS on Fisher, search_share=0.6',
    'dcss_cold': 'DCSS on Fisher, temperature=0.01',
    'transferred': 'widths of DCSS on CIFAR-10, others uniform, Fisher',
    'itpruner': 'ITPruner on L1',
    'magnitude': 'magnitude',
    'nap_strong': 'NAP, strength=10',
    'nap_pi': "NAP, damping='pi', formula='OBS'",
    'nap_pi_compensate': "NAP, damping='pi', formula='OBS', compensate=True",
    'nap_pi_strong': "NAP, damping='pi', formula='OBS', strength=0.01",
    'nap_pi_obd': "NAP, damping='pi'",
    'nap_pi_obd_strong': "NAP, damping='pi', strength=0.1",
    'nap_weak': 'NAP, strength=0.1',
    'nap_empirical': "NAP, fisher='empirical'",
    'nap_batches': 'NAP, batches=256',
    'nap_layer_norm': "NAP, layer_norm='sum'",
    'nap_ratios': 'ratios of NAP, within layers by magnitude',
    'nap_order': 'ratios of magnitude, within layers by NAP',
}
# what is drawn for each layer: key of the results, label
FIGURES = dict(
    flops=('widths', 'Ratio of the channels'),
    density=('density', 'Density'),
)
TITLES = dict(
    flops='Channels, with a ratio of the flops',
    density='Single weights, at a density',
)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        description=__doc__,
        epilog='example: python benchmarks/accuracy/methods_report.py',
    )
    parser.add_argument(
        '--results', type=Path, default=HERE / 'results/methods'
    )
    parser.add_argument('--out', type=Path, default=ROOT / 'docs/accuracy')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    for file in sorted(args.results.glob('*.jsonl')):
        with complete(args.out / f'methods_{file.stem}.md') as partial:
            text = page(file, args.out)
            Path(partial).write_text('\n'.join(text) + '\n')


def page(file: Path, out: Path) -> list[str]:
    """The lines of a page; its figure is drawn."""
    config = Config.fromfile(
        HERE / f'configs/_methods/{file.stem}.py', import_custom_modules=False
    )
    results = read_results(file)
    places = config.get('decimals', 2)
    # kind -> amount -> method -> runs
    found: dict[str, dict[float, dict[str, list]]] = defaultdict(
        lambda: defaultdict(lambda: defaultdict(list))
    )
    plain = []
    for result in results:
        method, kind, amount = parts(result['experiment'])
        if kind:
            found[kind][amount][method].append(result)
        else:
            plain.append(result)
    text = [
        f'# Methods compared: {config.title}',
        '',
        *config.about.strip().splitlines(),
        *(
            begin(m, unit, results, plain, places)
            for m, unit in config.metrics.items()
        ),
        'Cells are before and after fine-tuning; with several seeds of a',
        'baseline the mean, then each seed after fine-tuning.',
    ]
    first = results[0]['baseline']
    for kind, amounts in found.items():
        for metric, unit in config.metrics.items():
            text += ['', f'## {TITLES[kind]}: {unit}', '']
            text += table(amounts, metric, places, first)
    for kind, amounts in found.items():
        key, label = FIGURES[kind]
        picture = f'methods_{file.stem}_{key}.png'
        draw(amounts, key, label, out / picture)
        text += ['', f'![{label} of every layer]({picture})']
    text += [
        '',
        '```bash',
        *config.commands.strip().splitlines(),
        '```',
        '',
        *machines(results),
    ]
    return text


def machines(results: Runs) -> list[str]:
    """What the results were made with, a line for each precision."""
    last = {run['precision']: run['machine'] for run in results}
    lines = [
        f'In {name} on {of["device"]}: {with_what(of)}'
        for name, of in last.items()
    ]
    return '\n\n'.join(lines).splitlines()


def parts(experiment: str) -> tuple[str, str, float]:
    """Method, 'flops' or 'density', and how much of it stays."""
    for kind in TITLES:
        method, found, amount = experiment.rpartition(f'_{kind}_')
        if found:
            return method, kind, float(amount)
    return experiment, '', 1.0


def begin(
    metric: str, unit: str, results: Runs, plain: Runs, places: int
) -> str:
    """What the baselines come to, also if the first is not pruned."""
    of = {run['baseline'][metric]: run['precision'] for run in results}
    first, *others = of
    words = f'The baseline comes to {first:.{places}f} {unit}'
    if plain:
        trained = f'{mean(plain, metric):.{places}f}'
        words += f', and to {trained} when it is trained on'
    for value in others:
        words += (
            f'; one that was trained in {of[value]} comes to '
            f'*{value:.{places}f}*, results from it are in italics'
        )
    return f'{words}.'


def name_of(method: str) -> str:
    """What the tables and figures call a method."""
    once = method.removesuffix('_steps')
    return NAMES[once] + (', in four steps' if once != method else '')


def mean(runs: Runs, metric: str, phase: str = 'finetuned') -> float:
    return statistics.mean(run[phase][metric] for run in runs)


def table(
    amounts: Mapping[float, Mapping[str, Runs]],
    metric: str,
    places: int,
    first: Mapping[str, float],
) -> list[str]:
    """Methods in rows, the best last column first; amounts in columns.

    Results from a baseline other than the first are in italics.
    """
    columns = sorted(amounts, reverse=True)
    methods = {method for runs in amounts.values() for method in runs}
    order = sorted(
        methods,
        key=lambda m: max(
            mean(r[m], metric) for r in amounts.values() if m in r
        ),
        reverse=True,
    )
    lines = [
        '| | ' + ' | '.join(f'{amount:g}' for amount in columns) + ' |',
        '|---' * (len(columns) + 1) + '|',
    ]
    for method in order:
        cells = [
            cell(amounts[column].get(method, ()), metric, places, first)
            for column in columns
        ]
        lines.append(f'| {name_of(method)} | {" | ".join(cells)} |')
    return lines


def cell(
    runs: Runs, metric: str, places: int, first: Mapping[str, float]
) -> str:
    """Results from each baseline, those from others than the first marked."""
    own = [run for run in runs if run['baseline'] == first]
    others = [run for run in runs if run['baseline'] != first]
    words = [numbers(own, metric, places)] if own else []
    words += [f'*{numbers(others, metric, places)}*'] if others else []
    return '; '.join(words)


def numbers(runs: Runs, metric: str, places: int) -> str:
    """Before and after fine-tuning; with several seeds each of them, too."""
    before, after = (mean(runs, metric, p) for p in ('pruned', 'finetuned'))
    words = f'{before:.{places}f} -> {after:.{places}f}'
    if len(runs) > 1:
        each = ', '.join(
            f'{run["finetuned"][metric]:.{places}f}' for run in runs
        )
        words += f' ({each})'
    return words


def draw(
    amounts: Mapping[float, Mapping[str, Runs]],
    key: str,
    label: str,
    path: Path,
) -> None:
    """A value of every layer, where the least stays of all."""
    least = min(amounts)
    figure, axes = plt.subplots(figsize=(10, 3.6), layout='constrained')
    names: list[str] = []
    for method, runs in amounts[least].items():
        layers = runs[0][key]
        axes.plot(list(layers.values()), 'o-', label=name_of(method), ms=3)
        names = [name.removeprefix('backbone.') for name in layers]
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=6)
    axes.set(ylabel=label, title=f'target {least:g}, first seed')
    if key == 'density':
        axes.set_yscale('log')
    else:
        axes.set_ylim(0)
    figure.legend(loc='outside right upper', fontsize=7)
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == '__main__':
    main()
