"""What a saved ratio leaves in the work dir.

``flops_0.50.pth`` (slim checkpoint), ``flops_0.50.json`` (structure),
``flops_0.50_finetune.py`` (ready config) and ``flops_0.50.png`` (picture).
Each appears under its name only when it is complete.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.config import Config
from mmengine.runner import Runner

from .picture import draw_kept_channels
from .structure import Structure

PRUNING_HOOK = 'FisherPruningHook'


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
    draw_kept_channels(structure, f'{path}.png')
    if runner.cfg.get('model'):
        _write(
            f'{path}_finetune.py',
            finetune_config(runner.cfg, _dumped_name(runner), stem, finetune),
        )
    partial = f'{stem}.pth.partial'
    runner.save_checkpoint(
        runner.work_dir,
        partial,
        save_optimizer=False,
        save_param_scheduler=False,
        by_epoch=False,
    )
    os.replace(os.path.join(runner.work_dir, partial), f'{path}.pth')
    return f'{path}.pth'


def finetune_config(
    config: Config, dumped: str, stem: str, overrides: Mapping[str, Any]
) -> str:
    """Text of a config that fine-tunes what a saved ratio left.

    It inherits the pruning config that the runner dumped beside it, so the
    work dir can be moved as a whole.

    Args:
        config (Config): The pruning config.
        dumped (str): Name of the file it was dumped to.
        stem (str): See :func:`save_ratio`.
        overrides (Mapping): Merged last, such as another learning rate.
    """
    here = '{{ fileDirname }}'
    model = dict(
        type='mmgfp.PrunedModel',
        architecture=config.model.type,
        structure=f'{here}/{stem}.json',
    )
    child = Config(
        dict(
            custom_imports=_with_mmgfp(config.get('custom_imports')),
            model=model,
            load_from=f'{here}/{stem}.pth',
            resume=False,
            work_dir=f'{here}/{stem}_finetune',
            custom_hooks=without_pruning(config.get('custom_hooks') or ()),
        )
    )
    child.merge_from_dict(dict(overrides))
    return (
        f'# Fine-tunes the network that pruning left at {stem}.\n'
        f"_base_ = './{dumped}'\n{child.pretty_text}"
    )


def _dumped_name(runner: Runner) -> str:
    """Name under which mmengine dumps its config into the work dir."""
    if runner.cfg.filename is None:
        return f'{runner.timestamp}.py'
    return os.path.basename(runner.cfg.filename)


def without_pruning(hooks: Sequence[Any]) -> list[Any]:
    """The custom hooks other than the pruning hook."""
    return [
        hook
        for hook in hooks
        if not str(
            hook.get('type', '') if isinstance(hook, Mapping) else ''
        ).endswith(PRUNING_HOOK)
    ]


def _with_mmgfp(imports: Mapping[str, Any] | None) -> dict[str, Any]:
    imports = dict(imports or dict(imports=[]))
    names = imports['imports']
    names = [names] if isinstance(names, str) else list(names)
    imports['imports'] = names if 'mmgfp' in names else [*names, 'mmgfp']
    return imports


def _write(path: str, text: str) -> None:
    partial = f'{path}.partial'
    with open(partial, 'w', encoding='utf-8') as file:
        file.write(text)
    os.replace(partial, path)
