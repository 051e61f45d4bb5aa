"""Prune a trained model by its weights without training.

The command writes the same files as the pruning hook: a slim checkpoint, its
structure, a fine-tuning config and a picture of the kept channels.
"""

from __future__ import annotations

import logging
import os
import time
from argparse import ArgumentTypeError, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import mmengine
import numpy as np
from mmengine.config import Config
from rich.console import Console
from rich.table import Table

from ..cost.model import METRICS
from ..engine.calibration import show_features, train_loader
from ..engine.saved import stems, write_ratio
from ..engine.settings import (
    read_criterion,
    read_floor,
    read_ratios,
    read_search,
    read_target,
)
from ..engine.start import prepare_net
from ..libraries.channel_groups import demo_groups
from ..libraries.models import load_model
from ..libraries.pipeline import input_shape
from ..registry import CRITERIA, SEARCHES
from ..report.table import widths_table
from ..search.budget import Budget
from ..search.limits import Floor
from ..search.prunable import Prunable
from ..search.pruner import Normalizer, Pruner
from ..search.quotas import group_ratios
from ..search.search import (
    FeatureSearch,
    Search,
    cut_to_widths,
    narrowest_line,
)
from ..slimming.checkpoint import load_plain_checkpoint
from ..slimming.structure import KEY
from ..tracing.finder import restrict_groups
from ..utils.errors import did_you_mean
from .errors import errors_in_one_line
from .options import (
    Settings,
    add_shape_option,
    config_parser,
    positive,
    read_config,
)


def of_weights() -> list[str]:
    """Returns the names of the criteria that need no data."""
    return [
        name
        for name, kind in sorted(CRITERIA.module_dict.items())
        if kind.when == 'weights'
    ]


def at_once() -> list[str]:
    """Returns the names of the searches that need no training."""
    return [
        name
        for name, kind in sorted(SEARCHES.module_dict.items())
        if not hasattr(kind, 'step')  # trained searches have this method
    ]


def parse_args(arguments: Sequence[str] | None) -> Namespace:
    parser = config_parser(
        'prune',
        __doc__,
        'mmgfp::quickstart/retinanet_r18_digits.py '
        'work_dirs/quickstart/retinanet/baseline/epoch_4.pth '
        '--criterion L1 --target flops=0.5',
    )
    parser.add_argument('checkpoint', help='checkpoint of the full model')
    parser.add_argument(
        '--target',
        required=True,
        type=_target,
        metavar='METRIC=RATIO',
        help='remaining ratio of flops, acts or params to stop at, such as '
        'flops=0.5',
    )
    parser.add_argument(
        '--criterion',
        default='L1',
        metavar='CRITERION',
        help='criterion that scores channels; those with the lowest scores '
        f'are removed: {", ".join(of_weights())} (default: L1)',
    )
    parser.add_argument(
        '--search',
        metavar='SEARCH',
        help=f'{", ".join(at_once())}: decide the widths of all groups '
        'together; the criterion says which channels stay. ITPruner reads '
        'images of the train dataloader. By default the channels with the '
        'lowest scores are removed in turn',
    )
    parser.add_argument(
        '--search-options',
        nargs='+',
        action=Settings,
        default={},
        metavar='KEY=VALUE',
        help='options of the search, such as images=200 for ITPruner',
    )
    parser.add_argument(
        '--normalize-by',
        default='none',
        choices=[n for n in get_args(Normalizer) if n != 'latency'],
        help='saved cost of a channel, by which its score is divided '
        '(default: none)',
    )
    parser.add_argument(
        '--min-ratio',
        type=float,
        default=0.1,
        metavar='RATIO',
        help='ratio of its channels that every group keeps; at 0, layers may '
        'be left with a single channel (default: 0.1)',
    )
    parser.add_argument(
        '--round-to',
        type=_multiple,
        default=1,
        metavar='N',
        help='every group keeps a multiple of N channels (default: 1); auto '
        'for 8, and less in groups of less than 32 channels',
    )
    parser.add_argument(
        '--ignore',
        nargs='+',
        default=[],
        metavar='PATTERN',
        help='patterns of layers whose outputs, with all coupled channels, '
        "are kept, such as 'backbone.layer1.*'",
    )
    parser.add_argument(
        '--ratio',
        nargs='+',
        default=[],
        type=_ratio,
        metavar='PATTERN=RATIO',
        help='ratio of its outputs that each of these layers keeps, such as '
        "'backbone.layer4.*=0.7'; other layers do not compete with them, or "
        'share one ratio with --search Uniform',
    )
    parser.add_argument(
        '--isomorphic',
        action='store_true',
        help='compare channels only with channels of layers of the same types',
    )
    parser.add_argument(
        '--out',
        metavar='FOLDER',
        help='folder for the files (default: work_dirs/NAME OF THE CONFIG)',
    )
    add_shape_option(parser, 'height and width of the input for counting cost')
    return parser.parse_args(arguments)


def _target(text: str) -> dict[str, float]:
    metric, _, share = text.partition('=')
    try:
        if metric in METRICS:
            return {metric: float(share)}
        raise ValueError(metric)
    except ValueError:
        raise ArgumentTypeError(
            f'{text!r}: expected one of {", ".join(METRICS)} and the '
            'remaining ratio, such as flops=0.5'
        ) from None


def check_names(args: Namespace) -> None:
    """Check criterion and search, also those that the config imports.

    Raises:
        ValueError: If there is none of that name, or if it needs training.
    """
    for option, name, names, registry, why in (
        (
            '--criterion',
            args.criterion,
            of_weights(),
            CRITERIA,
            'needs training or its data: use PruningHook or SearchHook in a '
            'config (docs/method.md)',
        ),
        (
            '--search',
            args.search,
            at_once(),
            SEARCHES,
            'learns during training: use SearchHook in a config '
            '(docs/methods/searches.md)',
        ),
    ):
        if name is None or name in names:
            continue
        if name in registry.module_dict:
            raise ValueError(f'{option} {name} {why}')
        raise ValueError(
            f'{option} {name}: there is no {name!r}'
            f'{did_you_mean(name, names)} Expected one of {", ".join(names)}, '
            'or one that custom_imports of the config registers'
        )


def _multiple(text: str) -> int | str:
    return text if text == 'auto' else positive(text)


def _ratio(text: str) -> tuple[str, float]:
    pattern, _, share = text.rpartition('=')
    try:
        return pattern, float(share)
    except ValueError:
        raise ArgumentTypeError(
            f'{text!r}: expected a pattern of layer names and the remaining '
            "ratio, such as 'backbone.layer4.*=0.7'"
        ) from None


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse_args(arguments)
    with errors_in_one_line(args.debug):
        prune(args)


def prune(args: Namespace) -> None:
    metric, share = read_target(args.target)
    floor = read_floor(1, args.min_ratio, args.round_to)
    config = read_config(args)
    check_names(args)
    search = make_search(args)
    loaded = load_plain_checkpoint(args.checkpoint)
    if KEY in loaded:
        raise ValueError(
            f'{args.checkpoint} is pruned already; expected the weights of '
            'the full network. To prune it further, set it as load_from of a '
            'config with a pruning hook'
        )
    model = load_model(config, args.checkpoint)
    shape = tuple(args.shape or input_shape(config))
    logger = logging.getLogger('mmgfp')
    with Console(stderr=True).status('') as status:  # only on a terminal
        found = demo_groups(model, shape, status.update)
    groups = restrict_groups(found, ignore=args.ignore)
    net = prepare_net(model, groups, shape, None, 1, None, logger)
    if search is None:
        remove_least(args, net, floor)
    else:
        search_widths(args, config, net, search, floor)
    structure = net.structure(args.config, shape)
    folder = args.out or os.path.join('work_dirs', Path(args.config).stem)
    os.makedirs(folder, exist_ok=True)
    meta = loaded.get('meta')
    known = meta.get('dataset_meta') if isinstance(meta, dict) else None
    saved = write_ratio(
        os.path.join(folder, stems(metric, [share])[share]),
        {
            'meta': {
                'cfg': config.pretty_text,
                'time': time.strftime('%Y%m%d_%H%M%S'),
                'mmengine_version': mmengine.__version__,
                **({'dataset_meta': known} if known else {}),
            },
            'state_dict': model.state_dict(),
            KEY: structure.to_dict(),
        },
        *(structure, model, config, {}, logger.warning),
    )
    by = (
        f'{args.search} and {args.criterion}'
        if args.search
        else args.criterion
    )
    report(net, by, saved)


def remove_least(args: Namespace, net: Prunable, floor: Floor) -> None:
    """Cut the channels with the lowest scores until the target is met."""
    metric, share = read_target(args.target)
    ratios = read_ratios(dict(args.ratio))
    pruner = Pruner(
        net,
        read_criterion({'type': args.criterion}),
        args.normalize_by,
        floor,
        args.isomorphic,
        group_ratios(net.units.groups, ratios),
    )
    unscored = pruner.unscored()
    if without := sorted(pruner.limits.ratios.keys() & set(unscored)):
        raise ValueError(
            f'--ratio names layers of the channel groups {without[:5]}, which '
            f'{args.criterion} does not score: expected another criterion or '
            'patterns without them'
        )
    least = pruner.limits.reachable(unscored)[metric]
    if least > share:
        raise ValueError(
            f'target={args.target} cannot be reached: with {floor}, '
            f'ratios={ratios}, ignore={args.ignore} and the scores of '
            f'{args.criterion}, at least {least:.3f} of {metric} '
            'stays. Raise the target or lower the floors.'
        )
    pruner.prune(lambda count: net.ratio(metric) <= share)


def make_search(args: Namespace) -> Search | None:
    """Build the search of the arguments, if there is one."""
    settings = {**args.search_options}
    if args.search is None:
        if settings:
            raise ValueError(
                f'--search-options {settings} needs --search; expected one of '
                f'{", ".join(at_once())}'
            )
        return None
    for option, value, otherwise in (
        (
            '--ratio',
            args.ratio and args.search != 'Uniform',
            ' or with --search Uniform',
        ),
        ('--isomorphic', args.isomorphic, ''),
        ('--normalize-by', args.normalize_by != 'none', ''),
    ):
        if value:
            raise ValueError(
                f'{option} is for pruning without a search{otherwise}, but '
                f'--search is {args.search}. Remove one of them.'
            )
    if args.ratio:
        settings['ratios'] = read_ratios(dict(args.ratio))
    search = read_search({'type': args.search, **settings})
    search.criterion = read_criterion(dict(type=args.criterion))
    return search


def search_widths(
    args: Namespace,
    config: Config,
    net: Prunable,
    search: Search,
    floor: Floor,
) -> None:
    """Cut the network to the widths of a search."""
    search.criterion.attach(net.model, net.units)
    there = np.ones(len(net.units), bool)
    scores = net.units.split(search.criterion.scores(there))
    budget = Budget(*read_target(args.target), floor)
    search.start(net, budget, scores)
    if isinstance(search, FeatureSearch):
        loader = train_loader(config, 0, search.batch)
        logging.getLogger('mmgfp').info('observing features of images')
        show_features(net.model, loader, search, logging.warning)
    narrowest = cut_to_widths(net, search, budget, scores)
    if line := narrowest_line(narrowest, len(net.units.groups)):
        logging.warning(line)


def report(net: Prunable, by: str, saved: Sequence[str]) -> None:
    table = Table(title=f'pruned by {by}')
    for column in ('', 'before', 'after', 'left'):
        table.add_column(column, justify='right' if column else 'left')
    cost, ratios = net.cost(), net.ratios()
    for metric in METRICS:
        table.add_row(
            metric,
            f'{net.cost_before[metric]:,.0f}',
            f'{cost[metric]:,.0f}',
            f'{ratios[metric]:.1%}',
        )
    console = Console()
    console.print(widths_table(net.units.groups, net.originals))
    console.print(table)
    for path in saved:
        console.print(f'saved {path}')
    configs = [path for path in saved if path.endswith('_finetune.py')]
    for path in configs:
        console.print(
            f'Accuracy was not measured. To recover it: mmgfp train {path}'
        )
