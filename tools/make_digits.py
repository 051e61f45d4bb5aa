"""Make a small data set of handwritten-digit scenes, without a download.

The 1 797 scans of 8x8 pixels that ship with scikit-learn are placed on
canvases with varied size, contrast, clutter and overlap. Written are

* ``train/*.png``, ``val/*.png``: the scenes, 8-bit grey;
* ``annotations/{train,val}.json``: COCO boxes and masks of the visible ink;
* ``cls/{train,val}/<digit>/*.png``: the single scans, for classification;
* ``meta.json``: what the set was made from.

A fifth of the scans is set aside for ``val``, so no scan is in both. The same
arguments give the same bytes (with the same numpy and OpenCV), and scene
``i`` stays the same when more scenes are asked for.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
from rich.console import Console
from rich.progress import Progress

# Raised whenever the same arguments would give other files than before.
VERSION = 1
SPLITS = ('train', 'val')
CLS_SIZE = 32
VAL_SHARE = 0.2
# Ink above this share of black counts as part of the digit.
INK_THRESHOLD = 0.35
# Digits may overlap: others must leave this share of a digit's ink visible,
# and this share of its box free of their boxes, two by two.
MIN_VISIBLE = 0.85
MIN_FREE = 0.65

EXAMPLE = """example:
  python tools/make_digits.py --train 2000 --val 400 --out data/digits
"""


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        description='Make a COCO data set of handwritten-digit scenes.',
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        '--train', type=int, default=2000, help='training scenes (2000)'
    )
    parser.add_argument(
        '--val', type=int, default=400, help='validation scenes (400)'
    )
    parser.add_argument(
        '--size', type=int, default=128, help='canvas side in pixels (128)'
    )
    parser.add_argument('--seed', type=int, default=0, help='seed (0)')
    parser.add_argument(
        '--out',
        type=Path,
        default=Path('data/digits'),
        help='folder to make (data/digits)',
    )
    args = parser.parse_args(argv)
    for name, least in (('train', 1), ('val', 1), ('size', 64), ('seed', 0)):
        if getattr(args, name) < least:
            parser.error(
                f'--{name} must be at least {least}, got {getattr(args, name)}'
            )
    return args


def load_scans() -> tuple[np.ndarray, np.ndarray]:
    """Load scikit-learn's scans.

    Returns:
        tuple: Ink in [0, 1], float32 ``(1797, 8, 8)``, and digits ``(1797,)``.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise SystemExit(
            f'The scans come with scikit-learn, which cannot be imported '
            f'({error}): pip install scikit-learn'
        ) from error
    bunch = load_digits()
    return (bunch.images / 16).astype(np.float32), bunch.target


def split_scans(labels: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """Share the scans out, each digit in the same proportion.

    Args:
        labels (np.ndarray): Digit of every scan, ``(N,)``.
        seed (int): Seed of the shuffle.

    Returns:
        dict[str, np.ndarray]: Sorted scan numbers of ``train`` and ``val``.
    """
    rng = np.random.default_rng([seed, len(SPLITS)])
    val = []
    for digit in range(10):
        scans = rng.permutation(np.flatnonzero(labels == digit))
        val.append(scans[: round(len(scans) * VAL_SHARE)])
    val = np.sort(np.concatenate(val))
    return dict(train=np.setdiff1d(np.arange(len(labels)), val), val=val)


def background(rng: np.random.Generator, size: int) -> np.ndarray:
    """Draw an uneven sheet with strokes and spots that are no digits.

    Args:
        rng (np.random.Generator): Source of randomness.
        size (int): Side of the canvas.

    Returns:
        np.ndarray: Brightness, float32 ``(size, size)``.
    """
    level = rng.uniform(0.5, 0.9)
    coarse = rng.uniform(-0.15, 0.15, (4, 4)).astype(np.float32)
    sheet = level + cv2.resize(
        coarse, (size, size), interpolation=cv2.INTER_CUBIC
    )
    for _ in range(rng.integers(0, 5)):
        tone = float(level + rng.choice((-1, 1)) * rng.uniform(0.1, 0.3))
        centre = tuple(map(int, rng.integers(0, size, 2)))
        shape = rng.integers(3)
        if shape == 0:
            end = tuple(map(int, rng.integers(0, size, 2)))
            cv2.line(
                sheet, centre, end, tone, int(rng.integers(1, 3)), cv2.LINE_AA
            )
        elif shape == 1:
            axes = tuple(map(int, rng.integers(size // 16, size // 3, 2)))
            start = float(rng.uniform(0, 360))
            cv2.ellipse(
                sheet,
                centre,
                axes,
                float(rng.uniform(0, 180)),
                start,
                start + float(rng.uniform(60, 200)),
                tone,
                int(rng.integers(1, 3)),
                cv2.LINE_AA,
            )
        else:
            cv2.circle(
                sheet,
                centre,
                int(rng.integers(2, size // 20)),
                tone,
                -1,
                cv2.LINE_AA,
            )
    return sheet


def lay_scan(
    scan: np.ndarray, rng: np.random.Generator, size: int
) -> np.ndarray:
    """Enlarge, stretch, turn and move a scan on an empty canvas.

    Args:
        scan (np.ndarray): Ink of one scan, ``(8, 8)``.
        rng (np.random.Generator): Source of randomness.
        size (int): Side of the canvas.

    Returns:
        np.ndarray: Ink in [0, 1], float32 ``(size, size)``.
    """
    # Log-uniform height from 1/6 to 1/3 of the canvas: 21 to 43 of 128.
    height = size * np.exp(rng.uniform(np.log(1 / 6), np.log(1 / 3)))
    scale = height / 8 * np.array([rng.uniform(0.8, 1.15), 1.0])
    angle = np.deg2rad(rng.uniform(-10, 10))
    turn = np.array(
        [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    )
    matrix = np.zeros((2, 3))
    matrix[:, :2] = turn * scale
    # The centre of the scan, (3.5, 3.5), goes where the digit fits.
    centre = rng.uniform(height / 2, size - height / 2, 2)
    matrix[:, 2] = centre - matrix[:, :2] @ np.array([3.5, 3.5])
    ink = cv2.warpAffine(scan, matrix, (size, size), flags=cv2.INTER_CUBIC)
    return np.clip(ink, 0, 1)


def box_of(mask: np.ndarray) -> np.ndarray:
    """Box of a mask: left, top, right and bottom, the last two exclusive."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])


def crowded(box: np.ndarray, others: list[np.ndarray]) -> bool:
    """Whether a box covers too much of another one, or is covered."""
    for other in others:
        overlap = np.minimum(box[2:], other[2:]) - np.maximum(
            box[:2], other[:2]
        )
        smaller = min(np.prod(b[2:] - b[:2]) for b in (box, other))
        if np.prod(np.maximum(overlap, 0)) > (1 - MIN_FREE) * smaller:
            return True
    return False


def compose_scene(
    scans: np.ndarray, labels: np.ndarray, rng: np.random.Generator, size: int
) -> tuple[np.ndarray, list[np.ndarray], list[int]]:
    """Compose one scene.

    Args:
        scans (np.ndarray): Scans to choose from, ``(N, 8, 8)``.
        labels (np.ndarray): Their digits, ``(N,)``.
        rng (np.random.Generator): Source of randomness.
        size (int): Side of the canvas.

    Returns:
        tuple: The image, uint8 ``(size, size)``, the visible ink of every
        digit, bool ``(size, size)`` each, and the digits.
    """
    sheet = background(rng, size)
    masks: list[np.ndarray] = []
    areas: list[int] = []
    digits: list[int] = []
    wanted = rng.integers(4, 11)
    for _ in range(3 * wanted):
        if len(masks) == wanted:
            break
        index = rng.integers(len(scans))
        ink = lay_scan(scans[index], rng, size)
        mask = ink > INK_THRESHOLD
        # Where ink lies on ink it counts as the newer digit's.
        left = [old & ~mask for old in masks]
        if any(
            new.sum() < MIN_VISIBLE * area for new, area in zip(left, areas)
        ):
            continue
        if crowded(box_of(mask), [box_of(old) for old in masks]):
            continue
        # ink darkens what is below, faintly or strongly
        contrast = rng.uniform(0.4, 0.95)
        sheet *= 1 - np.float32(contrast) * ink
        masks = [*left, mask]
        areas.append(int(mask.sum()))
        digits.append(int(labels[index]))
    sheet += rng.normal(0, rng.uniform(0.005, 0.03), sheet.shape)
    return np.clip(sheet * 255, 0, 255).astype(np.uint8), masks, digits


def annotation(mask: np.ndarray, digit: int) -> dict:
    """Describe one digit in COCO's terms.

    Args:
        mask (np.ndarray): Visible ink, bool ``(H, W)``.
        digit (int): Which digit it is.

    Returns:
        dict: The annotation without ``id`` and ``image_id``.
    """
    left, top, right, bottom = box_of(mask).tolist()
    # COCO's uncompressed run lengths: column by column, zeros first.
    flat = mask.ravel(order='F')
    ends = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff(ends, prepend=0, append=flat.size).tolist()
    return dict(
        category_id=digit,
        bbox=[left, top, right - left, bottom - top],
        area=int(mask.sum()),
        iscrowd=0,
        segmentation=dict(
            size=list(mask.shape), counts=[0] * bool(flat[0]) + runs
        ),
    )


def write_png(path: Path, image: np.ndarray) -> None:
    """Write an image, or fail (``cv2.imwrite`` only returns False)."""
    ok, data = cv2.imencode('.png', image, (cv2.IMWRITE_PNG_COMPRESSION, 3))
    if not ok:
        raise OSError(f'OpenCV cannot encode {path}')
    path.write_bytes(data.tobytes())


def write_scenes(
    out: Path,
    split: str,
    count: int,
    scans: np.ndarray,
    labels: np.ndarray,
    size: int,
    seed: int,
    advance,
) -> None:
    """Write the scenes of one split and their annotation file."""
    (out / split).mkdir()
    images, annotations = [], []
    for index in range(count):
        # A generator per scene: it does not depend on those before it.
        rng = np.random.default_rng([seed, SPLITS.index(split), index])
        image, masks, digits = compose_scene(scans, labels, rng, size)
        name = f'{index:06d}.png'
        write_png(out / split / name, image)
        images.append(dict(id=index, file_name=name, width=size, height=size))
        for mask, digit in zip(masks, digits):
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=index,
                    **annotation(mask, digit),
                )
            )
        advance()
    categories = [dict(id=digit, name=str(digit)) for digit in range(10)]
    (out / 'annotations').mkdir(exist_ok=True)
    (out / 'annotations' / f'{split}.json').write_text(
        json.dumps(
            dict(images=images, annotations=annotations, categories=categories)
        )
    )


def write_single(
    out: Path,
    split: str,
    numbers: np.ndarray,
    scans: np.ndarray,
    labels: np.ndarray,
) -> None:
    """Write the scans themselves, one folder per digit."""
    for digit in range(10):
        (out / 'cls' / split / str(digit)).mkdir(parents=True)
    for number in numbers:
        image = cv2.resize(
            scans[number], (CLS_SIZE, CLS_SIZE), interpolation=cv2.INTER_CUBIC
        )
        folder = out / 'cls' / split / str(labels[number])
        write_png(
            folder / f'{number:04d}.png',
            np.clip(image * 255, 0, 255).astype(np.uint8),
        )


def describe(
    args: argparse.Namespace, scans: np.ndarray, labels: np.ndarray
) -> dict:
    """Everything the bytes of the set depend on."""
    digest = hashlib.sha256(scans.tobytes() + labels.tobytes())
    return dict(
        version=VERSION,
        train=args.train,
        val=args.val,
        size=args.size,
        seed=args.seed,
        scans=digest.hexdigest(),
        numpy=np.__version__,
        opencv=cv2.__version__,
    )


def read_meta(out: Path) -> dict | None:
    """Read what an existing set was made from; None if it is not one."""
    try:
        return json.loads((out / 'meta.json').read_text())
    except (OSError, ValueError):
        return None


def replace(new: Path, out: Path) -> None:
    """Put the finished set in the place of an earlier one, if any."""
    if out.exists():
        old = new.with_name(new.name + '.old')
        os.rename(out, old)
        os.rename(new, out)
        shutil.rmtree(old)
    else:
        os.rename(new, out)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    console = Console()
    started = time.perf_counter()
    scans, labels = load_scans()
    meta = describe(args, scans, labels)
    if read_meta(args.out) == meta:
        console.print(f'{args.out} is already there, made as asked.')
        return 0
    if args.out.exists() and not args.out.is_dir():
        raise SystemExit(f'--out {args.out} is a file, expected a folder')
    if (
        args.out.is_dir()
        and any(args.out.iterdir())
        and read_meta(args.out) is None
    ):
        raise SystemExit(
            f'--out {args.out} holds something else than a digit set; '
            'it is left alone: name another folder or remove it'
        )

    # An even threading of OpenCV gains nothing on images this small.
    cv2.setNumThreads(0)
    split = split_scans(labels, args.seed)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    # Beside the final place, so that the last step is a plain rename.
    temporary = Path(
        tempfile.mkdtemp(prefix=f'.{args.out.name}.', dir=args.out.parent)
    )
    try:
        temporary.chmod(0o755)
        with Progress(console=console, transient=True) as progress:
            task = progress.add_task(
                'composing scenes', total=args.train + args.val
            )
            for name in SPLITS:
                numbers = split[name]
                write_scenes(
                    temporary,
                    name,
                    getattr(args, name),
                    scans[numbers],
                    labels[numbers],
                    args.size,
                    args.seed,
                    lambda: progress.advance(task),
                )
                write_single(temporary, name, numbers, scans, labels)
        (temporary / 'meta.json').write_text(json.dumps(meta, indent=1))
        replace(temporary, args.out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    console.print(
        f'{args.out}: {args.train} + {args.val} scenes of {args.size} px and '
        f'{len(split["train"])} + {len(split["val"])} single scans in '
        f'{time.perf_counter() - started:.1f} s'
    )
    return 0


if __name__ == '__main__':
    sys.exit(main())
