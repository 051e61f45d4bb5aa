"""What a saved ratio leaves in the work dir.

``flops_0.50.pth`` (slim checkpoint), ``flops_0.50.json`` (structure),
``flops_0.50_finetune.py`` (ready config) and ``flops_0.50.png`` (picture).
Each appears under its name only when it is complete.
"""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mmengine
import torch
from mmengine.config import Config
from mmengine.registry import HOOKS as ROOT_HOOKS
from mmengine.runner import Runner
from mmengine.runner.checkpoint import weights_to_cpu

from .adapt import unwrap
from .config_text import config_text, dotted_name
from .files import complete
from .kinds import imported, kind_of
from .picture import draw_kept_channels
from .registry import HOOKS
from .structure import KEY, Structure


def save_ratio(
    runner: Runner,
    structure: Structure,
    stem: str,
    finetune: Mapping[str, Any],
) -> str:
    """Write all files of one ratio; call on the main process.

    Args:
        runner (Runner): Whose model is slim.
        structure (Structure): Of that model.
        stem (str): Common part of the names, such as 'flops_0.50'.
        finetune (Mapping): Overrides for the fine-tuning config.

    Returns:
        str: Path of the checkpoint.
    """
    path = os.path.join(runner.work_dir, stem)
    structure.save(f'{path}.json')
    draw_kept_channels(structure, unwrap(runner.model), f'{path}.png')
    if runner.cfg.get('model'):
        config = finetune_config(runner.cfg, stem, finetune)
        with complete(f'{path}_finetune.py') as partial:
            Path(partial).write_text(config, encoding='utf-8')
    checkpoint = slim_checkpoint(runner)
    with complete(f'{path}.pth') as partial:
        torch.save(checkpoint, partial)
    return f'{path}.pth'


def slim_checkpoint(runner: Runner) -> dict[str, Any]:
    """Weights (averaged ones where there are), meta and structure.

    What only resuming needs is left out. Like mmengine's own checkpoints it
    passes through the hooks: EMA hooks put their weights in its place, the
    pruning hook adds the structure.
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
    """Text of a config that fine-tunes what a saved ratio left.

    It is complete: the work dir can be moved as a whole, and later runs in
    the same work dir do not change it.

    Args:
        config (Config): The pruning config.
        stem (str): See :func:`save_ratio`.
        overrides (Mapping): Merged last, such as another learning rate.

    Raises:
        ValueError: If something in it cannot be written into a file.
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
    architecture = imported(config.model.type)
    child.merge_from_dict(
        dict(
            custom_imports=_with_mmgfp(config.get('custom_imports')),
            model=dict(
                type='mmgfp.PrunedModel',
                # a registry knows it by name, a class by its own
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
    return (
        f'# Fine-tunes the network that pruning left at {stem}.\n'
        f'{config_text(child)}'
    )


def check_finetune_config(
    config: Config, overrides: Mapping[str, Any]
) -> None:
    """Raise before pruning what writing a config would raise after it.

    Args:
        config (Config): The pruning config.
        overrides (Mapping): See :func:`finetune_config`.

    Raises:
        ValueError: If something in it cannot be written into a file.
    """
    if config.get('model'):
        finetune_config(config, 'slim', overrides)


def without_pruning(hooks: Sequence[Any]) -> list[Any]:
    """The custom hooks other than the pruning hook, whatever its criterion."""
    return [hook for hook in hooks if not _is_pruning_hook(hook)]


def _is_pruning_hook(hook: Any) -> bool:
    kind = kind_of(hook, ROOT_HOOKS)
    pruning = HOOKS.get('FisherPruningHook')
    return isinstance(kind, type) and issubclass(kind, pruning)


def _with_mmgfp(imports: Mapping[str, Any] | None) -> dict[str, Any]:
    imports = dict(imports or dict(imports=[]))
    names = imports['imports']
    names = [names] if isinstance(names, str) else list(names)
    imports['imports'] = names if 'mmgfp' in names else [*names, 'mmgfp']
    return imports
