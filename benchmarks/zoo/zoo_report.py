"""Results of the sweep over all families of models, for people."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from zoo_families import left_out
from zoo_trial import COUNTED, FINE, NEITHER

from mmgfp.tracing.selfcheck import TOLERANCE
from mmgfp.utils.atomic import complete
from mmgfp.utils.environment import processor

Result = Mapping[str, Any]

NO_KERNEL = re.compile(
    r'(\w+)_forward_impl: implementation for device cpu not'
)

STEPS = {
    'build': 'does not build',
    'forward': 'does not run',
    'groups': 'finding groups fails',
    'cost': 'counting cost fails',
    'masking': 'the masked network fails',
    'saving': 'saving fails',
    'pruned': 'the slim network fails',
    'slim build': 'the slim network does not build',
    'slim forward': 'the slim network does not run',
}
COLUMNS = (
    *('family', 'groups', 'reach', 'left', 'error', 'in double', 'loss'),
    *('predict', 's', 'MB', 'result'),
)


# -- one family ------------------------------------------------------------


def verdict(result: Result) -> str:
    """The result of a family in a few words; 'ok' if all is well."""
    if missing := NO_KERNEL.search(result.get('error', '')):
        return f'needs a GPU: mmcv has no {missing[1]} for CPUs'
    if result.get('error'):
        where = STEPS.get(result.get('step', ''), result.get('step', ''))
        return f'{where}: {result["error"]}' if where else result['error']
    if not result.get('prunable'):
        return 'nothing can be pruned'
    troubles = []
    if not agrees(result):
        troubles.append(f'slim differs from masked by {_error(result)}')
    for step in ('loss', 'predict'):
        outcome = str(result.get(step))
        if outcome != FINE and not outcome.startswith(NEITHER):
            troubles.append(f'{step}: {outcome}')
    return '; '.join(troubles) or 'ok'


def agrees(result: Result) -> bool:
    """Whether slim equals masked, in single precision or but for rounding."""
    errors = [result.get('error_single'), result.get('error_double')]
    return any(isinstance(e, float) and e < TOLERANCE for e in errors)


def _error(result: Result) -> str:
    double = result.get('error_double')
    text = _scientific(result.get('error_single'))
    return f'{text}, {_scientific(double)} in double' if double else text


def _scientific(value: Any) -> str:
    return f'{value:.0e}' if isinstance(value, float) else str(value or '')


def _percent(value: Any) -> str:
    return f'{value:.1%}' if isinstance(value, float | int) else ''


# -- files -----------------------------------------------------------------


def read_results(out: Path) -> list[dict[str, Any]]:
    """What is kept of all families, by name."""
    results = [
        json.loads(file.read_text(encoding='utf-8'))
        for file in sorted((out / 'families').glob('*.json'))
    ]
    return sorted(results, key=lambda result: result['family'])


def write_report(out: Path, versions: Mapping[str, str]) -> None:
    """Write ``results.json``, ``README.md`` and ``reach.png``.

    Args:
        out (Path): Of the sweep.
        versions (Mapping): Of what results are up to date.
    """
    results = read_results(out)
    if not results:
        return
    with complete(out / 'results.json') as partial:
        lines = ',\n'.join(json.dumps(result) for result in results)
        Path(partial).write_text(f'[\n{lines}\n]\n', encoding='utf-8')
    draw_reach(results, out / 'reach.png')
    with complete(out / 'README.md') as partial:
        text = report(results, versions, left_out(), machine(), date.today())
        Path(partial).write_text(text, encoding='utf-8')


def machine() -> str:
    """Processor and memory, in words."""
    memory = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
    return f'{processor()}, {memory / 1e9:.0f} GB'


def report(
    results: Sequence[Result],
    versions: Mapping[str, str],
    omitted: Mapping[str, str],
    where: str,
    when: date,
) -> str:
    """The text of ``README.md``."""
    stale = sum(result.get('versions') != versions for result in results)
    words = [verdict(result) for result in results]
    reach = [r['reach'] for r, word in zip(results, words) if word == 'ok']
    lines = [
        '# Every family of models',
        '',
        'Made by `python benchmarks/zoo/zoo.py`; do not edit. '
        f'{when.isoformat()}, {where}, '
        + ', '.join(f'{k} {v}' for k, v in versions.items())
        + '.',
        '',
        f'{words.count("ok")} of {len(results)} architectures pass all '
        f'checks; {sum(share >= 0.5 for share in reach)} of these can lose at '
        f'least half of the flops, {sum(share >= 0.9 for share in reach)} at '
        f'least nine tenths. In {words.count("nothing can be pruned")} '
        'nothing can be pruned.',
    ]
    if stale:
        lines.append(f'{stale} rows are of other versions than these.')
    lines += [
        '',
        'Random weights, two random images. Random channels were removed '
        'until half of the flops were gone (at most three quarters of any '
        'group); the slim network was built in a new process from the '
        'generated config, the structure and the slim checkpoint.',
        '',
        '- groups: prunable / found',
        '- reach: share of the flops that pruning can remove, one unit left '
        f'per group; counted on images of {COUNTED} pixels, where heads on '
        'regions weigh more than on larger ones: `mmgfp groups` tells it '
        'for the size of a config',
        '- left: share of the flops of the slim network',
        '- error: slim against masked, largest difference over largest '
        'magnitude, the worst output; in double: the same in double '
        f'precision, where single precision was not below {TOLERANCE:g}. '
        'Some networks amplify rounding errors so much with random weights '
        'that single precision tells nothing; what is small in double '
        'precision is no error of the pruning',
        '- loss: of the slim network, with gradients; predict: it gives '
        'results; nor unpruned: the full network of the library fails '
        'likewise (its words are in `results.json`)',
        '- s, MB: for finding and proving the groups, peak memory of the '
        'process',
        '',
        '![Reachable share of the flops](reach.png)',
    ]
    for library in sorted({r['family'].partition('/')[0] for r in results}):
        rows = [r for r in results if r['family'].startswith(f'{library}/')]
        lines += ['', f'## {library}', '']
        lines += _table(COLUMNS, [_row(result) for result in rows])
    lines += [
        '',
        '## What is frozen, and why',
        '',
        'The flops are those of all layers that would lose channels of these '
        'groups, so a layer can count under several reasons. What the '
        'reasons mean is in [method](../method.md#coupled-channels).',
        '',
    ]
    for result in results:
        lines += _frozen(result)
    lines += ['', '## Not run', '']
    lines += _table(('family', 'why'), list(omitted.items()))
    return '\n'.join(lines) + '\n'


def _row(result: Result) -> list[str]:
    groups = ''
    if 'groups' in result:
        groups = f'{result["prunable"]} / {result["groups"]}'
    return [
        result['family'].partition('/')[2],
        groups,
        _percent(result.get('reach')),
        _percent(result.get('left')),
        _scientific(result.get('error_single')),
        _scientific(result.get('error_double')),
        *(_outcome(result.get(step, '')) for step in ('loss', 'predict')),
        f'{result["seconds"]:.1f}' if 'seconds' in result else '',
        str(result.get('memory_mb', '')),
        verdict(result),
    ]


def _outcome(text: str) -> str:
    if text.startswith(NEITHER):
        return NEITHER.rstrip(': ')
    return text if text in ('', FINE) else 'no'


def _frozen(result: Result) -> list[str]:
    if not result.get('frozen'):
        return []
    lines = [
        f'**{result["family"]}** (`{result["config"]}`, '
        f'{result["architecture"]}, '
        f'{"x".join(map(str, result["shape"]))}'
        + ('' if result['mode'] == 'tensor' else f', {result["mode"]} mode')
        + ')',
        '',
    ]
    lines += [
        f'- {row["groups"]} group{"s" * (row["groups"] > 1)}, '
        f'{row["flops"]:.0%} of the flops: '
        f'{row["reason"]} (such as `{row["example"]}`)'
        for row in result['frozen']
    ]
    return [*lines, '']


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    cells = [[cell.replace('|', '\\|') for cell in row] for row in rows]
    return [
        f'| {" | ".join(head)} |',
        f'|{"---|" * len(head)}',
        *(f'| {" | ".join(row)} |' for row in cells),
    ]


def draw_reach(results: Sequence[Result], path: Path) -> None:
    """Bars of the flops that pruning can reach, one panel per library."""
    from matplotlib.figure import Figure

    panels: dict[str, list[tuple[float, str]]] = {}
    for result in results:
        library, _, name = result['family'].partition('/')
        reach = float(result.get('reach', 0))
        panels.setdefault(library, []).append((reach, name))
    longest = max(len(bars) for bars in panels.values())
    figure = Figure(
        figsize=(6 * len(panels), 1 + 0.16 * longest), layout='constrained'
    )
    for axes, (library, bars) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels.items()
    ):
        bars.sort(reverse=True)
        axes.barh([name for _, name in bars], [100 * r for r, _ in bars])
        axes.set_ylim(longest - 0.5, -0.5)
        axes.set_xlim(0, 100)
        axes.tick_params(axis='y', labelsize=7)
        axes.tick_params(axis='x', top=True, labeltop=True)
        axes.set_title(f'{library}: % of the flops that pruning can remove')
        axes.grid(axis='x', alpha=0.4)
    with complete(path) as partial:
        figure.savefig(partial, format='png', dpi=100)
