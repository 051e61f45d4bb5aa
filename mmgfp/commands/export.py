"""Write a network, pruned or not, as a standalone ONNX file."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, get_args

import numpy as np
import torch
from rich import box
from rich.table import Table

from ..export.check import (
    HALF,
    SINGLE,
    Agreement,
    CheckError,
    batches_of,
    check_file,
)
from ..export.onnx import (
    Exported,
    example_images,
    left_out,
    make_network,
    metadata,
    number_of_classes,
    write_onnx,
)
from ..export.rounding import Direction, Rounded, round_network
from ..libraries.models import load_model
from ..libraries.pictures import (
    Preprocessing,
    class_names,
    dataset_pictures,
    folder_pictures,
    read_picture,
    read_preprocessing,
)
from ..report.table import render
from ..slimming.checkpoint import load_plain_checkpoint, meta_of
from ..slimming.structure import KEY, Structure
from ..utils.atomic import complete
from .errors import errors_in_one_line
from .options import (
    add_json_option,
    add_shape_option,
    config_parser,
    file_to_write,
    json_alone,
    positive,
    read_config,
    write_json,
)

# Number of images that --check compares.
IMAGES = 8


def parse_args(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = config_parser(
        'export',
        __doc__,
        'work_dirs/prune_retinanet/'
        'flops_0.50_finetune.py work_dirs/prune_retinanet/'
        'flops_0.50_finetune/epoch_12.pth --out model.onnx --decode --check',
    )
    parser.add_argument(
        'checkpoint', help='checkpoint of the network, pruned or not'
    )
    parser.add_argument(
        '--out',
        required=True,
        type=file_to_write('.onnx'),
        metavar='FILE.onnx',
        help='ONNX file to write',
    )
    add_shape_option(
        parser,
        'height and width of the input, each rounded up to a multiple of '
        "the model's pad_size_divisor",
    )
    parser.add_argument(
        '--dynamic',
        action='store_true',
        help='let batch size, height and width of the input vary',
    )
    parser.add_argument(
        '--half',
        action='store_true',
        help='write weights and input in half precision (float16)',
    )
    parser.add_argument(
        '--decode',
        action='store_true',
        help='output the boxes, scores and labels of a detector instead of '
        'the raw outputs of its heads',
    )
    parser.add_argument(
        '--check',
        action='store_true',
        help=f'compare the outputs of ONNX Runtime and PyTorch on {IMAGES} '
        'pictures; if they differ, no file is written and the exit status is '
        '1',
    )
    parser.add_argument(
        '--images',
        metavar='FOLDER',
        help="pictures for --check (default: pictures of the config's test "
        'dataset, or noise if the dataset is missing)',
    )
    parser.add_argument(
        '--round-to',
        type=positive,
        metavar='N',
        help='round the number of channels left in each group to a multiple '
        'of N; the rounded network is also written as a checkpoint beside the '
        'ONNX file',
    )
    parser.add_argument(
        '--rounding',
        choices=get_args(Direction),
        default='down',
        help='how --round-to rounds: down removes the least important '
        'channels, up restores the most important removed channels, nearest '
        'chooses the smaller change (default: down)',
    )
    parser.add_argument(
        '--full-weights',
        metavar='CHECKPOINT',
        help='checkpoint of the full network that pruning began with; '
        '--rounding up and nearest take the weights of restored channels '
        'from it',
    )
    add_json_option(parser)
    args = parser.parse_args(arguments)
    if args.images and not args.check:
        parser.error('--images needs --check')
    if args.rounding != 'down' and not args.round_to:
        parser.error(f'--rounding {args.rounding} needs --round-to')
    if args.rounding != 'down' and not args.full_weights:
        parser.error(f'--rounding {args.rounding} needs --full-weights')
    if args.rounding == 'down' and args.full_weights:
        parser.error('--full-weights needs --rounding up or nearest')
    return args


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse_args(arguments)
    # MMDetection calls torch.meshgrid without the argument indexing
    warnings.filterwarnings('ignore', 'torch.meshgrid')
    with errors_in_one_line(args.debug), json_alone(args.json):
        try:
            export(args)
        except CheckError as error:
            if args.debug:
                raise
            sys.exit(f'error: {args.out} was not written: {error}')


def export(args: argparse.Namespace) -> None:
    config = read_config(args)
    model = load_model(config, args.checkpoint)
    rounded = None
    if args.round_to:
        structure = Structure.load(args.checkpoint)
        rounded = round_network(
            *(config, model, structure, args.round_to),
            args.rounding,
            args.full_weights,
        )
        model = rounded.model
    preprocessing = read_preprocessing(config, model, args.shape, args.dynamic)
    loaded = load_plain_checkpoint(args.checkpoint)
    meta = meta_of(loaded, args.checkpoint)
    classes = class_names(config, meta, number_of_classes(model))
    # before anything that takes long
    pictures: list[str] = []
    source = ''
    if args.check:
        pictures, source = find_pictures(args, config)

    example = example_images(preprocessing, 2 if args.dynamic else 1)
    network = make_network(model, example, args.dynamic, args.decode)
    facts = metadata(network, model, preprocessing, classes, args.half)
    agreement = None
    with complete(args.out) as partial:
        exported = write_onnx(
            network, example, partial, facts, args.dynamic, args.half
        )
        if args.check:
            prepared = prepare(pictures, preprocessing)
            batches = batches_of(prepared, args.dynamic)
            agreement = check_file(partial, network, batches, args.half)
        if rounded is not None:
            save_rounded(rounded, args)

    if left_out(model):
        print(f'note: {left_out(model)} is left out, only boxes are kept')
    if not classes:
        print('note: the names of the classes are unknown')
    if rounded is not None:
        describe_rounding(rounded, args)
    describe(args, exported, preprocessing)
    if agreement is not None:
        describe_check(agreement, source, args.half)
    if args.json:
        result = to_plain(args, exported, facts, agreement, source, rounded)
        write_json(args.json, result)


def rounded_path(args: argparse.Namespace) -> str:
    return args.out.removesuffix('.onnx') + '_rounded.pth'


def save_rounded(rounded: Rounded, args: argparse.Namespace) -> None:
    loaded = load_plain_checkpoint(args.checkpoint)
    checkpoint = {
        'meta': meta_of(loaded, args.checkpoint),
        'state_dict': rounded.model.state_dict(),
        KEY: rounded.structure.to_dict(),
    }
    with complete(rounded_path(args)) as partial:
        torch.save(checkpoint, partial)


def describe_rounding(rounded: Rounded, args: argparse.Namespace) -> None:
    """Print the change of each group and of the cost."""
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column('channel group', overflow='fold')
    for title in ('original', 'pruned', f'rounded to {args.round_to}'):
        table.add_column(title, justify='right', no_wrap=True)
    moved = [c for c in rounded.changes if c.before != c.after]
    for c in moved:
        row = (c.original, c.before, f'{c.after} ({c.after - c.before:+})')
        table.add_row(c.group, *map(str, row))
    if moved:
        print(render(table))
    odd = [c.group for c in rounded.changes if c.after % args.round_to]
    print(
        f'{len(moved)} of {len(rounded.changes)} pruned channel groups '
        f'changed, {sum(c.after - c.before for c in moved):+} channels'
        + (f'; no multiple: {", ".join(odd)}' if odd else '')
    )
    if rounded.changes and not moved and odd:
        print(
            f'note: --round-to {args.round_to} changed nothing, because no '
            'group has that many channels left; expected a smaller number'
        )
    for metric, before in rounded.before.items():
        after = rounded.structure.cost_after[metric]
        full = rounded.structure.cost_before[metric]
        print(
            f'  {metric}: {before / full:.1%} -> {after / full:.1%} of the '
            f'original ({after / before - 1:+.1%})'
        )
    print(
        f'{rounded_path(args)}: the rounded network as a checkpoint with its '
        'structure, for `mmgfp test` and `mmgfp benchmark`'
    )


def find_pictures(
    args: argparse.Namespace, config: Any
) -> tuple[list[str], str]:
    """Returns the paths of pictures for the check, and their source."""
    if args.images:
        return folder_pictures(args.images, IMAGES), args.images
    found = dataset_pictures(config, IMAGES)
    return found, "the config's test dataset" if found else 'noise'


def prepare(
    pictures: Sequence[str], preprocessing: Preprocessing
) -> list[np.ndarray]:
    """Returns inputs (1, C, H, W) made of pictures, or of noise."""
    if not pictures:
        noise = example_images(preprocessing, IMAGES).numpy()
        return [noise[i : i + 1] for i in range(IMAGES)]
    return [preprocessing(read_picture(path))[0] for path in pictures]


def describe(
    args: argparse.Namespace,
    exported: Exported,
    preprocessing: Preprocessing,
) -> None:
    height, width = preprocessing.input_size
    shape = f'(1, {len(preprocessing.mean)}, {height}, {width})'
    if args.dynamic:
        shape = f'(N, {len(preprocessing.mean)}, H, W)'
    precision = 'half' if args.half else 'single'
    print(
        f'{args.out}: {exported.size / 1e6:.2f} MB, {exported.params} '
        f'params, input {shape} in {precision} precision, outputs '
        f'{", ".join(exported.outputs)}'
    )


def describe_check(found: Agreement, source: str, half: bool) -> None:
    allowed = HALF if half else SINGLE
    what = (
        f'random noise ({found.images} inputs), because there are no pictures'
        if source == 'noise'
        else f'{found.images} pictures of {source}'
    )
    print(f'checked against PyTorch with {what}:')
    if found.relative:
        name = found.worst(allowed)
        print(
            f'  {name}: largest difference {found.relative[name]:.1e} of its '
            f'largest value (allowed {found.allowed(name, allowed):.1e}); '
            'the other outputs have a larger margin'
        )
    if found.boxes:
        print(
            f'  {found.matched} of the {found.boxes} boxes of PyTorch '
            f'have a partner in the file; of the boxes without a partner, '
            f'{found.unmatched} have a score clearly above the threshold '
            f'(allowed {allowed.unmatched:.0%}); scores differ by at most '
            f'{found.score:.1e} of the highest (allowed {allowed.score:g}), '
            f'corners by {found.pixels:.1e} pixels (allowed '
            f'{allowed.pixels:g})'
        )
    elif not found.relative:
        print(
            '  neither PyTorch nor ONNX Runtime found a box: scores and '
            'corners were not compared'
        )


def to_plain(
    args: argparse.Namespace,
    exported: Exported,
    facts: dict[str, str],
    agreement: Agreement | None,
    source: str,
    rounded: Rounded | None,
) -> dict[str, Any]:
    """Returns the result as plain types, for JSON."""
    result: dict[str, Any] = dict(
        config=args.config,
        checkpoint=args.checkpoint,
        out=args.out,
        **asdict(exported),
        metadata=facts,
    )
    if agreement is not None:
        result['check'] = dict(pictures=source, **asdict(agreement))
    if rounded is not None:
        result['rounding'] = dict(
            round_to=args.round_to,
            rounding=args.rounding,
            full_weights=args.full_weights,
            checkpoint=rounded_path(args),
            cost_pruned=rounded.before,
            cost_rounded=dict(rounded.structure.cost_after),
            groups=[asdict(change) for change in rounded.changes],
        )
    return result
