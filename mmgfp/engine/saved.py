"""Files of a saved ratio in the work dir.

``flops_0.50.pth`` (slim checkpoint), ``flops_0.50.json`` (structure),
``flops_0.50_finetune.py`` (complete config) and ``flops_0.50.png`` (picture;
not for pruned single weights, as in ``density_0.20.pth``). Each file has its
final name only when it is complete.
"""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import Any

import mmengine
import torch
from mmengine.config import Config
from mmengine.registry import HOOKS as ROOT_HOOKS
from mmengine.runner import Runner
from mmengine.runner.checkpoint import weights_to_cpu
from torch import nn

from ..libraries.config_text import config_text, dotted_name
from ..libraries.kinds import imported, kind_of
from ..libraries.models import builds_slim, unwrap
from ..registry import HOOKS
from ..slimming.structure import KEY, Structure
from ..utils.atomic import complete
from ..utils.errors import type_and_line


def stems(metric: str, shares: Sequence[float]) -> dict[float, str]:
    """Returns the common part of the file names of each saved ratio.

    It is 'flops_0.50', or 'flops_0.500' if 0.499 is saved, too; 'flops_0.003'
    for a ratio that two digits would show as zero.

    Args:
        metric (str): Metric of the ratios.
        shares (Sequence[float]): All saved ratios.
    """
    names = {}
    for share in shares:
        others = [other for other in shares if other != share]
        digits = next(
            n
            for n in count(2)
            if all(f'{share:.{n}f}' != f'{other:.{n}f}' for other in others)
            and float(f'{share:.{n}f}')
        )
        names[share] = f'{metric}_{share:.{digits}f}'
    return names


def save_ratio(
    runner: Runner,
    structure: Structure,
    stem: str,
    finetune: Mapping[str, Any],
) -> list[str]:
    """Write all files of one ratio; call on the main process.

    All files are written, or none. Only the picture may be missing.

    Args:
        runner (Runner): The runner with the slim model.
        structure (Structure): Structure of that model.
        stem (str): Common part of the names, such as 'flops_0.50'.
        finetune (Mapping): Overrides for the fine-tuning config.

    Returns:
        list[str]: Paths of the files; the checkpoint is the first.
    """
    return write_ratio(
        os.path.join(runner.work_dir, stem),
        slim_checkpoint(runner),
        structure,
        unwrap(runner.model),
        runner.cfg,
        finetune,
        runner.logger.warning,
    )


def write_ratio(
    path: str,
    checkpoint: Mapping[str, Any],
    structure: Structure,
    model: nn.Module,
    config: Config,
    finetune: Mapping[str, Any],
    warn: Callable[[str], object],
) -> list[str]:
    """Write all files of one slim network.

    All files are written, or none. Only the picture may be missing.

    Args:
        path (str): Path of the files without suffix.
        checkpoint (Mapping): Checkpoint with the slim weights.
        structure (Structure): Structure of the model.
        model (nn.Module): The slim model.
        config (Config): Config that trains the full model.
        finetune (Mapping): Overrides for the fine-tuning config.
        warn (Callable): Called with the reason if there is no picture.

    Returns:
        list[str]: Paths of the files; the checkpoint is the first.
    """
    stem = os.path.basename(path)
    saved = []
    with ExitStack() as files:

        def partial(ending: str) -> str:
            saved.append(f'{path}{ending}')
            return files.enter_context(complete(saved[-1]))

        torch.save(checkpoint, partial('.pth'))
        structure.save(partial('.json'))
        if config.get('model'):
            text = finetune_config(config, stem, finetune)
            Path(partial('_finetune.py')).write_text(text, encoding='utf-8')
        else:  # the config of an earlier run is for another network
            Path(f'{path}_finetune.py').unlink(missing_ok=True)
    if not structure.density and _draw(structure, model, f'{path}.png', warn):
        saved.append(f'{path}.png')
    return saved


def _draw(
    structure: Structure,
    model: nn.Module,
    path: str,
    warn: Callable[[str], object],
) -> bool:
    """Draw the kept channels; returns whether the picture was written.

    A failure is only a warning, so that it does not end the run.
    """
    try:
        from ..report.picture import (
            draw_kept_channels,  # matplotlib may be missing
        )

        draw_kept_channels(structure, model, path)
    except Exception as error:
        Path(path).unlink(missing_ok=True)  # of an earlier run
        warn(f'the picture {path} was not drawn: {type_and_line(error)}')
        return False
    return True


def slim_checkpoint(runner: Runner) -> dict[str, Any]:
    """Returns weights (averaged ones if there are any), meta and structure.

    Entries for resuming are left out. Like mmengine's own checkpoints it
    passes through the hooks: EMA hooks insert their weights, the pruning
    hook adds the structure.
    """
    dataset = runner.train_dataloader.dataset
    checkpoint = dict(
        meta=dict(
            epoch=runner.epoch,
            iter=runner.iter + 1,
            cfg=runner.cfg.pretty_text,
            seed=runner.seed,
            experiment_name=runner.experiment_name,
            time=time.strftime('%Y%m%d_%H%M%S'),
            mmengine_version=mmengine.__version__,
        ),
        state_dict=weights_to_cpu(unwrap(runner.model).state_dict()),
    )
    if hasattr(dataset, 'metainfo'):
        checkpoint['meta']['dataset_meta'] = dataset.metainfo
    runner.call_hook('before_save_checkpoint', checkpoint=checkpoint)
    return {key: checkpoint[key] for key in ('meta', 'state_dict', KEY)}


def finetune_config(
    config: Config, stem: str, overrides: Mapping[str, Any]
) -> str:
    """Returns the text of a config that fine-tunes a saved network.

    It is complete: the work dir can be moved as a whole, and later runs in
    the same work dir do not change it.

    Args:
        config (Config): The pruning config.
        stem (str): See :func:`save_ratio`.
        overrides (Mapping): Merged last, such as another learning rate.

    Raises:
        ValueError: If a value of the config cannot be written into a file.
    """
    here = '{{ fileDirname }}'
    child = copy.deepcopy(config)
    structure = f'{here}/{stem}.json'
    child.custom_hooks = [
        *without_pruning(config.get('custom_hooks') or ()),
        dict(type='mmgfp.StructureHook', structure=structure),
    ]
    if config.get('default_hooks'):
        child.default_hooks = {
            name: hook
            for name, hook in config.default_hooks.items()
            if not _is_pruning_hook(hook)
        }
    architecture = imported(
        config.model.architecture if builds_slim(config) else config.model.type
    )
    child.merge_from_dict(
        dict(
            custom_imports=_with_mmgfp(config.get('custom_imports')),
            model=dict(
                type='mmgfp.PrunedModel',
                # a name is looked up in a registry, a class is used as it is
                architecture=dotted_name(architecture) or architecture,
                structure=structure,
            ),
            load_from=f'{here}/{stem}.pth',
            resume=False,
            launcher='none',
            work_dir=f'{here}/{stem}_finetune',
        )
    )
    child.merge_from_dict(dict(overrides))
    return f'# Fine-tunes the pruned network {stem}.\n{config_text(child)}'


def check_finetune_config(
    config: Config, overrides: Mapping[str, Any]
) -> None:
    """Check before pruning that the fine-tuning config can be written.

    Args:
        config (Config): The pruning config.
        overrides (Mapping): See :func:`finetune_config`.

    Raises:
        ValueError: If a value of the config cannot be written into a file.
    """
    if config.get('model'):
        finetune_config(config, 'slim', overrides)


def without_pruning(hooks: Sequence[Any]) -> list[Any]:
    """Returns the custom hooks without those of mmgfp."""
    return [hook for hook in hooks if not _is_pruning_hook(hook)]


def _is_pruning_hook(hook: Any) -> bool:
    kind = kind_of(hook, ROOT_HOOKS)
    names = ('PruningHook', 'SearchHook', 'SparsityHook', 'StructureHook')
    known = tuple(HOOKS.get(name) for name in names)
    return isinstance(kind, type) and issubclass(kind, known)


def _with_mmgfp(imports: Mapping[str, Any] | None) -> dict[str, Any]:
    imports = dict(imports or dict(imports=[]))
    names = imports['imports']
    names = [names] if isinstance(names, str) else list(names)
    imports['imports'] = names if 'mmgfp' in names else [*names, 'mmgfp']
    return imports
