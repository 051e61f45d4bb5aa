"""The page with the results of all benchmarks."""

from __future__ import annotations

import json
from pathlib import Path

from benchmark_inference_report import draw_inference, inference_section
from benchmark_report import draw_training, training_section

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
    for kind, heading, draw, section in (
        ('training', _TRAINING, draw_training, training_section),
        ('inference', _INFERENCE, draw_inference, inference_section),
    ):
        files = sorted(out.glob(f'{kind}_*.json'))
        if files:
            text.append(heading)
        for file in files:
            result = json.loads(file.read_text())
            draw(result, file.with_suffix('.png'))
            text.append(section(result, f'{out.name}/{file.stem}.png'))
    text += [file.read_text() for file in sorted(out.glob('*.md'))]
    with complete(page) as partial:
        Path(partial).write_text('\n'.join(text), encoding='utf-8')
    return page


_HEAD = """# Benchmarks

Made by `python benchmarks/speed/benchmark.py`. All numbers that are compared
were measured in one process, in turn; given are medians and, in brackets, the
least and the greatest of the rounds.
"""

_TRAINING = """`python benchmarks/speed/benchmark.py training`:

- *reference's method*: the paper's code; inputs are stored by forward hooks,
  products with the gradients made by backward hooks, a loop over the groups
  ends each iteration.
- *MMRazor's method*: all inputs and gradients are kept until the step ends.
- *reading inputs and gradients once*: what scores cannot do without, as fast
  as the machine reads its memory.
- *pruning to half of the flops*: ten pruning steps, ten iterations each. If
  time went with flops, the ratio would be the *mean share of the flops
  meanwhile*.

The two other methods are small baselines in
`benchmarks/speed/benchmark_baselines.py`, written from what they do.
"""

_INFERENCE = """`python benchmarks/speed/benchmark.py inference CONFIG
CHECKPOINT ...`:

- What is timed is the raw forward, from a batch of normalised images (noise)
  to what the heads put out, as `tools/export.py` writes it: no reading of
  pictures, no boxes (but the proposals of two-stage detectors), no
  suppression after the heads. On a GPU, images and outputs stay there.
- *eager* is PyTorch as it is, *compile* `torch.compile`, *onnxruntime* the
  exported file in ONNX Runtime, with as many threads as PyTorch.
- *ratio*: to the first network in the same round.
- *eager MB*: peak of an eager forward in a process of its own; on a CPU all
  that is resident, Python and its libraries too, on a GPU the tensors.
- Cost is that of one image of the size that is timed; two-stage detectors
  are counted with 512 proposals, but timed with those of their config.
"""
