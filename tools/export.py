"""Write a network, pruned or not, as an ONNX file that can be used alone."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from mmgfp.adapt import load_model
from mmgfp.checkpoint import load_plain_checkpoint
from mmgfp.cli import (
    add_json_option,
    add_shape_option,
    config_parser,
    errors_in_one_line,
    write_json,
)
from mmgfp.config import load_config
from mmgfp.export import (
    Exported,
    example_images,
    left_out,
    make_network,
    metadata,
    number_of_classes,
    write_onnx,
)
from mmgfp.export_check import (
    HALF,
    SINGLE,
    Agreement,
    CheckError,
    batches_of,
    check_file,
)
from mmgfp.files import complete
from mmgfp.preprocessing import (
    Preprocessing,
    class_names,
    dataset_pictures,
    folder_pictures,
    read_picture,
    read_preprocessing,
)

# Images that --check compares.
IMAGES = 8


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = config_parser(
        __doc__,
        'python tools/export.py work_dirs/prune_retinanet/'
        'flops_0.50_finetune.py work_dirs/prune_retinanet/'
        'flops_0.50_finetune/epoch_12.pth --out model.onnx --decode --check',
    )
    parser.add_argument('checkpoint', help='weights, slim ones too')
    parser.add_argument(
        '--out', required=True, metavar='FILE.onnx', help='file to write'
    )
    add_shape_option(
        parser,
        'input size, rounded up to multiples of what the model pads images to',
    )
    parser.add_argument(
        '--dynamic',
        action='store_true',
        help='let batch, height and width vary',
    )
    parser.add_argument(
        '--half',
        action='store_true',
        help='weights and input in half precision',
    )
    parser.add_argument(
        '--decode',
        action='store_true',
        help='put out boxes, scores and labels of detectors instead of what '
        'their heads put out',
    )
    parser.add_argument(
        '--check',
        action='store_true',
        help='compare ONNX Runtime with PyTorch on pictures; if they differ, '
        'nothing is written and the exit status is 1',
    )
    parser.add_argument(
        '--images',
        metavar='FOLDER',
        help="pictures for --check; by default those of the config's test "
        'dataset, or noise where there is none',
    )
    add_json_option(parser)
    args = parser.parse_args(argv)
    if not args.out.endswith('.onnx'):
        parser.error(f'--out must be an .onnx file, but is {args.out!r}')
    if not Path(args.out).absolute().parent.is_dir():
        parser.error(f'the folder of --out {args.out!r} does not exist')
    if args.images and not args.check:
        parser.error('--images is of use with --check only')
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    # MMDetection's places of predictions call it in the old way
    warnings.filterwarnings('ignore', 'torch.meshgrid')
    with errors_in_one_line(args.debug):
        try:
            export(args)
        except CheckError as error:
            if args.debug:
                raise
            sys.exit(f'error: {args.out} was not written: {error}')


def export(args: argparse.Namespace) -> None:
    config = load_config(args.config)
    config.merge_from_dict(args.cfg_options or {})
    model = load_model(config, args.checkpoint)
    preprocessing = read_preprocessing(config, model, args.shape, args.dynamic)
    meta = load_plain_checkpoint(args.checkpoint).get('meta') or {}
    classes = class_names(config, meta, number_of_classes(model))
    # before anything that takes long
    pictures, source = [], ''
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

    if args.json != '-':
        if left_out(model):
            print(f'note: {left_out(model)} is left out, only boxes are kept')
        if not classes:
            print('note: the names of the classes are not known')
        describe(args, exported, preprocessing)
        if agreement is not None:
            describe_check(agreement, source, args.half)
    if args.json:
        result = to_plain(args, exported, facts, agreement, source)
        write_json(args.json, result)


def find_pictures(
    args: argparse.Namespace, config: Any
) -> tuple[list[str], str]:
    """Paths for the check, and where they are from."""
    if args.images:
        return folder_pictures(args.images, IMAGES), args.images
    found = dataset_pictures(config, IMAGES)
    return found, "the config's test dataset" if found else 'noise'


def prepare(
    pictures: Sequence[str], preprocessing: Preprocessing
) -> list[np.ndarray]:
    """Inputs (1, C, H, W) made of pictures, or of noise."""
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
        f'random noise ({found.images} inputs), for there are no pictures'
        if source == 'noise'
        else f'{found.images} pictures of {source}'
    )
    print(f'checked against PyTorch with {what}:')
    if found.relative:
        name = found.worst(allowed)
        print(
            f'  {name}: largest difference {found.relative[name]:.1e} of its '
            f'largest value (allowed {found.allowed(name, allowed):.1e}); '
            'the others are farther from what is allowed'
        )
    if found.boxes:
        print(
            f'  {found.matched} of {found.boxes} boxes have a partner, '
            f'{found.unmatched} should but have none (allowed '
            f'{allowed.unmatched:.0%}); scores differ by at most '
            f'{found.score:.1e} of the highest (allowed {allowed.score:g}), '
            f'corners by {found.pixels:.1e} pixels (allowed '
            f'{allowed.pixels:g})'
        )
    elif not found.relative:
        print('  neither found a box: this says little')


def to_plain(
    args: argparse.Namespace,
    exported: Exported,
    facts: dict[str, str],
    agreement: Agreement | None,
    source: str,
) -> dict[str, Any]:
    """Everything as plain types, for JSON."""
    result: dict[str, Any] = dict(
        config=args.config,
        checkpoint=args.checkpoint,
        out=args.out,
        **asdict(exported),
        metadata=facts,
    )
    if agreement is not None:
        result['check'] = dict(pictures=source, **asdict(agreement))
    return result


if __name__ == '__main__':
    main()
