"""Write one HTML page about what a pruning run left in its work dir."""

from __future__ import annotations

import argparse

from mmgfp.engine.cli import errors_in_one_line, file_to_write
from mmgfp.report.page import SCORE_THR, write_report


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        allow_abbrev=False,
        epilog='example: python tools/report.py work_dirs/prune_retinanet',
    )
    parser.add_argument('work_dir', help='work dir of the pruning run')
    parser.add_argument(
        '--out',
        type=file_to_write('.html'),
        metavar='FILE.html',
        help='the page; its figures are in a folder of that name beside it '
        '(report.html in the work dir)',
    )
    parser.add_argument(
        '--images',
        metavar='FOLDER',
        help='pictures to draw predictions on; by default some of the '
        "config's test dataset",
    )
    parser.add_argument(
        '--score-thr',
        type=score,
        default=SCORE_THR,
        metavar='X',
        help=f'draw boxes from this score on ({SCORE_THR})',
    )
    parser.add_argument(
        '--debug', action='store_true', help='show the traceback of errors'
    )
    return parser.parse_args()


def score(text: str) -> float:
    """A number from 0 to 1, for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if 0 <= value <= 1:
        return value
    raise argparse.ArgumentTypeError(
        f'{text!r}: expected a number from 0 to 1'
    )


def main() -> None:
    args = parse_args()
    with errors_in_one_line(args.debug):
        path = write_report(
            args.work_dir, args.out, args.images, args.score_thr
        )
        print(path)


if __name__ == '__main__':
    main()
