"""Figures that need no display, and their colours."""

from __future__ import annotations

import os

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..utils.atomic import complete

# Distinct for colour-blind people and in grey (Okabe-Ito).
BLUE, ORANGE, GREEN = '#0072B2', '#D55E00', '#009E73'
PURPLE, SKY, AMBER = '#CC79A7', '#56B4E9', '#E69F00'
GREY, SHADE = '#C9CED6', '#F3F5F7'
CYCLE = (BLUE, ORANGE, GREEN, PURPLE, SKY, AMBER)


def new_figure(width: float, height: float) -> Figure:
    """Returns an empty figure.

    Args:
        width (float): Inches.
        height (float): Inches.
    """
    figure = Figure(figsize=(width, height), layout='constrained')
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: str | os.PathLike) -> None:
    """Write a PNG; complete or not at all."""
    with complete(path) as partial:
        figure.savefig(partial, dpi=150, format='png')
