"""The page with the results of all benchmarks."""

from __future__ import annotations

import json
from pathlib import Path

from benchmark_report import draw_training, training_section

from mmgfp.speed.page import sections
from mmgfp.utils.atomic import complete


def write_report(out: Path) -> Path:
    """Write the tables and pictures of all results in a folder.

    Args:
        out (Path): Has ``training_cpu.json``, ``inference_<name>_cpu.json``
            and the like, and sections that other commands made
            (``*.md``), which come last.

    Returns:
        Path: The page, beside the folder.
    """
    page = out.with_suffix('.md')
    text = [_HEAD]
    files = sorted(out.glob('training_*.json'))
    if files:
        text.append(_TRAINING)
    for file in files:
        result = json.loads(file.read_text())
        draw_training(result, file.with_suffix('.png'))
        text.append(training_section(result, f'{out.name}/{file.stem}.png'))
    text += sections(out)
    text += [file.read_text() for file in sorted(out.glob('*.md'))]
    with complete(page) as partial:
        Path(partial).write_text('\n'.join(text), encoding='utf-8')
    return page


_HEAD = """# Benchmarks

Made by `python benchmarks/speed/benchmark.py` and `mmgfp benchmark`. Compared
numbers were measured in one process, in turn. They are medians, with the
minimum and maximum of the rounds in brackets.
"""

_TRAINING = """`python benchmarks/speed/benchmark.py training`:

- *reference's method*: the paper's code; inputs are stored by forward hooks,
  products with the gradients made by backward hooks, a loop over the groups
  ends each iteration.
- *MMRazor's method*: all inputs and gradients are kept until the step ends.
- *reading inputs and gradients once*: a lower bound, the time to read
  inputs and gradients from memory.
- *pruning to half of the flops*: ten pruning steps, ten iterations each. If
  time were proportional to flops, the ratio would be the *mean share of the
  flops meanwhile*: the mean ratio of flops during these iterations.

The two other methods are small baselines in
`benchmarks/speed/benchmark_baselines.py`, which implement what the two do.
"""
