"""A page with all results of `mmgfp benchmark` in a folder."""

from __future__ import annotations

import json
from pathlib import Path

from ..utils.atomic import complete
from .picture import draw_inference
from .tables import inference_section


def write_page(out: Path) -> Path:
    """Write the tables and pictures of all measured networks.

    Args:
        out (Path): Folder with files such as ``inference_<name>_cpu.json``.

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
    """Returns the sections of the page for a folder; draws pictures."""
    found = []
    for file in sorted(out.glob('inference_*.json')):
        result = json.loads(file.read_text(encoding='utf-8'))
        draw_inference(result, file.with_suffix('.png'))
        picture = f'{out.name}/{file.stem}.png'
        found.append(inference_section(result, picture))
    return [_INFERENCE, *found] if found else []


_HEAD = """# Speed of networks

Compared numbers were measured in one process, in turn. They are medians, with
the minimum and maximum of the rounds in brackets.
"""

_INFERENCE = """`mmgfp benchmark CONFIG CHECKPOINT ...`:

- The measured time is that of the raw forward, from a batch of normalised
  images (noise) to the outputs of the heads, as `mmgfp export` writes it. It
  includes no reading of pictures, no boxes (except the proposals of two-stage
  detectors) and no suppression after the heads. On a GPU, images and outputs
  stay on the GPU.
- *eager* is plain PyTorch, *compile* `torch.compile`, *onnxruntime* the
  exported file in ONNX Runtime, with as many threads as PyTorch.
- *ratio*: time divided by that of the first network in the same round.
- *eager MB*: peak of an eager forward in a separate process; on a CPU the
  resident memory with Python and its libraries, on a GPU the tensors.
- Cost is that of one image of the measured size; two-stage detectors
  are counted with 512 proposals, but timed with those of their config.
"""
