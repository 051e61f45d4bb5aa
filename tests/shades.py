"""A tiny data set for detection and classification."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np

CLASSES = ('dark', 'grey', 'bright')


def write_shades(folder: Path) -> Path:
    """Rectangles of three shades on noise: COCO json, and crops by class."""
    rng = np.random.default_rng(0)
    images, boxes = [], []
    (folder / 'images').mkdir()
    for i in range(12):
        picture = rng.integers(0, 60, (96, 96, 3), dtype=np.uint8)
        for shade in rng.permutation(3)[:2]:
            x, y = rng.integers(0, 50, 2).tolist()
            w, h = rng.integers(20, 46, 2).tolist()
            picture[y : y + h, x : x + w] = 80 + 80 * shade
            boxes.append(
                dict(
                    id=len(boxes) + 1,
                    image_id=i,
                    category_id=int(shade),
                    bbox=[x, y, w, h],
                    area=w * h,
                    iscrowd=0,
                )
            )
            crop = folder / 'crops' / CLASSES[shade]
            crop.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(crop / f'{i}.png'), picture)
        name = f'{i}.png'
        cv2.imwrite(str(folder / 'images' / name), picture)
        images.append(dict(id=i, file_name=name, width=96, height=96))
    categories = [dict(id=i, name=name) for i, name in enumerate(CLASSES)]
    (folder / 'boxes.json').write_text(
        json.dumps(
            dict(images=images, annotations=boxes, categories=categories)
        )
    )
    return folder
