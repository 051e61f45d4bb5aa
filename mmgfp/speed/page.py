"""A page with all that `mmgfp benchmark` wrote into a folder."""

from __future__ import annotations

import json
from pathlib import Path

from ..utils.atomic import complete
from .picture import draw_inference
from .tables import inference_section


def write_page(out: Path) -> Path:
    """Write the tables and pictures of all networks that were measured.

    Args:
        out (Path): Has ``inference_<name>_cpu.json`` and the like.

    Returns:
        Path: The page, beside the folder.
    """
    page = out.with_suffix('.md')
    with complete(page) as partial:
        Path(partial).write_text(
            '\n'.join([_HEAD, *sections(out)]), encoding='utf-8'
        )
    return page


def sections(out: Path) -> list[str]:
    """Of the page, what the results in a folder say; draws pictures."""
    found = []
    for file in sorted(out.glob('inference_*.json')):
        result = json.loads(file.read_text(encoding='utf-8'))
        draw_inference(result, file.with_suffix('.png'))
        picture = f'{out.name}/{file.stem}.png'
        found.append(inference_section(result, picture))
    return [_INFERENCE, *found] if found else []


_HEAD = """# Speed of networks

All numbers that are compared were measured in one process, in turn; given are
medians and, in brackets, the least and the greatest of the rounds.
"""

_INFERENCE = """`mmgfp benchmark CONFIG CHECKPOINT ...`:

- What is timed is the raw forward, from a batch of normalised images (noise)
  to what the heads put out, as `mmgfp export` writes it: no reading of
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
