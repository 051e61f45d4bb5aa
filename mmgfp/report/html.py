"""Parts of an HTML page that needs no other file; page.html has the markup.

Each part is safe HTML that other parts insert unchanged; text is escaped. This
file is independent of pruning.
"""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

_PARTS: Any = (
    Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
    )
    .get_template('page.html')
    .module
)
folded, page, table = _PARTS.folded, _PARTS.page, _PARTS.table
text, tiles = _PARTS.text, _PARTS.tiles


def picture(
    path: Path, words: str, caption: str = '', shrinks: bool = False
) -> Markup:
    """Returns a figure with an embedded PNG.

    Args:
        path (Path): The file.
        words (str): Alternative text.
        caption (str): Text below the figure. Defaults to none.
        shrinks (bool): Whether it shrinks to the width of a narrow window,
            which makes labels unreadable; otherwise it scrolls there.
            Defaults to False.
    """
    png = path.read_bytes()
    # the width in the PNG's header, at 1.5 pixels of it per pixel of the page
    width = round(int.from_bytes(png[16:20], 'big') / 1.5)
    data = base64.b64encode(png).decode('ascii')
    least = 0 if shrinks else round(0.8 * width)
    return _PARTS.figure(data, width, least, words, caption)
