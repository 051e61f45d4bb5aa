"""Write an HTML page about a pruning run from the files in its work dir."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ..report.page import SCORE_THR, write_report
from .errors import errors_in_one_line
from .options import command_parser, file_to_write


def parse_args(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser('report', __doc__, 'work_dirs/prune_retinanet')
    parser.add_argument('work_dir', help='work dir of the pruning run')
    parser.add_argument(
        '--out',
        type=file_to_write('.html'),
        metavar='FILE.html',
        help='page to write; its figures are written to a folder of the same '
        'name beside it (default: report.html in the work dir)',
    )
    parser.add_argument(
        '--images',
        metavar='FOLDER',
        help='pictures to draw predictions on (default: some pictures of the '
        "config's test dataset)",
    )
    parser.add_argument(
        '--score-thr',
        type=score,
        default=SCORE_THR,
        metavar='X',
        help='lowest score of drawn boxes, from 0 to 1 '
        f'(default: {SCORE_THR})',
    )
    return parser.parse_args(arguments)


def score(text: str) -> float:
    """Returns a number from 0 to 1, for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if 0 <= value <= 1:
        return value
    raise argparse.ArgumentTypeError(
        f'{text!r}: expected a number from 0 to 1'
    )


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse_args(arguments)
    with errors_in_one_line(args.debug):
        path = write_report(
            args.work_dir, args.out, args.images, args.score_thr
        )
        print(path)
