"""One HTML page that needs nothing else: text, tables, embedded pictures.

Knows nothing of pruning.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path

_STYLE = """
*{box-sizing:border-box}
body{margin:0 auto;padding:1rem clamp(.75rem,3vw,2rem) 4rem;max-width:70rem;
 font:16px/1.55 system-ui,-apple-system,'Segoe UI',Roboto,sans-serif;
 color:#1c2430;background:#fff;overflow-wrap:anywhere}
h1{font-size:clamp(1.4rem,4vw,2rem);line-height:1.2;margin:1rem 0 .5rem}
h2{font-size:1.25rem;margin:2.5rem 0 .5rem;padding-top:.75rem;
 border-top:1px solid #dfe3e8}
p{max-width:46rem;margin:.5rem 0}
nav{display:flex;flex-wrap:wrap;gap:.25rem 1rem;margin:1rem 0}
a{color:#0072b2}
.quiet{color:#56606d}
.scroll{overflow-x:auto;margin:.75rem 0}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;
 white-space:nowrap;font-size:.9rem}
th,td{padding:.35rem .8rem;text-align:right;border-bottom:1px solid #e6e9ed}
th{color:#56606d;font-weight:600;border-bottom:2px solid #c9ced6}
th:first-child,td:first-child{text-align:left;padding-left:0}
th.words,td.words{text-align:left}
td.words:last-child{white-space:normal;min-width:16rem}
img{display:block;max-width:100%;height:auto}
figure{margin:1rem 0;overflow-x:auto}
figcaption{color:#56606d;font-size:.9rem;max-width:46rem;position:sticky;
 left:0}
.tiles{display:grid;gap:1rem 1.5rem;
 grid-template-columns:repeat(auto-fit,minmax(min(100%,26rem),1fr))}
.tiles figure{margin:0}
summary{cursor:pointer;color:#0072b2;margin:.5rem 0}
code{font-size:.9em}
"""


def page(title: str, lead: str, sections: Sequence[tuple[str, str]]) -> str:
    """The whole document.

    Args:
        title (str): Plain text.
        lead (str): HTML that stands under the title.
        sections (Sequence): Heading in plain text, and HTML of each.
    """
    links = ''.join(
        f'<a href="#s{i}">{escape(heading)}</a>\n'
        for i, (heading, _) in enumerate(sections)
    )
    body = ''.join(
        f'<section id="s{i}">\n<h2>{escape(heading)}</h2>\n{html}</section>\n'
        for i, (heading, html) in enumerate(sections)
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width,initial-scale=1">\n'
        f'<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n'
        f'<body>\n<h1>{escape(title)}</h1>\n{lead}<nav>\n{links}</nav>\n'
        f'{body}</body>\n</html>\n'
    )


def text(words: str, quiet: bool = False) -> str:
    """A paragraph of plain text."""
    kind = ' class="quiet"' if quiet else ''
    return f'<p{kind}>{escape(words)}</p>\n'


def table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    words: Sequence[str] = (),
) -> str:
    """A table of plain text, in a box that scrolls where it is too wide.

    Args:
        head (Sequence[str]): Names of the columns.
        rows (Sequence[Sequence[str]]): A cell per column.
        words (Sequence[str]): Columns that are read from the left, besides
            the first. Defaults to none.
    """
    kinds = [' class="words"' if name in words else '' for name in head]
    top = ''.join(
        f'<th{kind}>{escape(name)}</th>' for kind, name in zip(kinds, head)
    )
    body = ''.join(
        '<tr>'
        + ''.join(
            f'<td{kind}>{escape(cell)}</td>' for kind, cell in zip(kinds, row)
        )
        + '</tr>\n'
        for row in rows
    )
    return (
        f'<div class="scroll"><table>\n<thead><tr>{top}</tr></thead>\n'
        f'<tbody>\n{body}</tbody>\n</table></div>\n'
    )


def picture(
    path: Path, words: str, caption: str = '', shrinks: bool = False
) -> str:
    """A PNG inside the page.

    Args:
        path (Path): The file.
        words (str): What it shows, for those who do not see it.
        caption (str): Stands under it. Defaults to none.
        shrinks (bool): Whether it is made as small as a narrow window needs,
            which makes labels unreadable; otherwise it scrolls there.
            Defaults to False.
    """
    png = path.read_bytes()
    # of its header; dense enough for screens with more pixels
    width = round(int.from_bytes(png[16:20], 'big') / 1.5)
    data = base64.b64encode(png).decode('ascii')
    below = f'<figcaption>{escape(caption)}</figcaption>' if caption else ''
    least = '' if shrinks else f' style="min-width:{round(0.8 * width)}px"'
    return (
        f'<figure><img width="{width}"{least} alt="{escape(words)}" '
        f'src="data:image/png;base64,{data}">{below}</figure>\n'
    )


def tiles(figures: Sequence[str]) -> str:
    """Figures beside each other where there is room."""
    return f'<div class="tiles">\n{"".join(figures)}</div>\n'


def folded(heading: str, html: str) -> str:
    """HTML that opens when its heading is clicked."""
    return f'<details><summary>{escape(heading)}</summary>\n{html}</details>\n'
