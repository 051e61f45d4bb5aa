"""Loading a config by path or in short form.

This file finds the configs of installed packages. It does not depend on the
contents of configs and imports only mmengine; a missing package of a short
form is an error. Importing this file lets MMEngine read ``_base_ =
'mmgfp::...'``, too, and ``'mmseg::...'`` of any package that contains mmseg.
"""

from __future__ import annotations

from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path

from mmengine.config import Config

from ..utils.errors import type_and_line
from .models import use_scope


def load_config(name: str | Path) -> Config:
    """Load a config and make its default scope the current one.

    Modules named by ``custom_imports`` are imported, and the registries find
    the modules of the scope from here on, as in a runner.

    Args:
        name (str | Path): Path of a config, or the short form of one that an
            installed package brings, with or without the suffix:
            ``'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'``.

    Returns:
        Config: The loaded config. Its ``filename`` is the file behind the
        short form.

    Raises:
        FileNotFoundError: If there is no such config; the message names the
            nearest ones.
        ValueError: If it cannot be read.
    """
    name = str(name)
    path = _installed_config(name) if '::' in name else _config_file(name)
    try:
        config = Config.fromfile(path)
    except Exception as error:  # a config is a program
        missing = _missing_module(error)
        raise ValueError(
            f'the config {name!r} cannot be read: {type_and_line(error)}'
            if missing is None
            else f'the config {name!r} cannot be read: there is no module '
            f'{missing.name!r}. A module of your own in `custom_imports` must '
            'be in a folder of PYTHONPATH; `mmgfp` also finds those in the '
            'current folder'
        ) from error
    use_scope(config)
    return config


def _missing_module(
    error: BaseException | None,
) -> ModuleNotFoundError | None:
    """Returns the failed import behind an error; None for other errors."""
    found = None
    while isinstance(error, ImportError):
        if isinstance(error, ModuleNotFoundError):
            found = error
        error = error.__cause__ or error.__context__
    return found


def config_folder(package: str) -> Path:
    """Returns the folder of configs of an installed package.

    Raises:
        FileNotFoundError: If the package is not installed.
    """
    spec = find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(f'the package {package!r} is not installed')
    return Path(spec.submodule_search_locations[0], '.mim', 'configs')


def _config_file(name: str) -> Path:
    path = Path(name)
    if path.is_file():
        return path
    # a wrong folder is as common as a wrong file name
    folder = path.parent if path.parent.is_dir() else Path('configs')
    known = [str(file) for file in sorted(folder.rglob('*.py'))]
    raise FileNotFoundError(
        f'there is no config {name!r}{_did_you_mean(name, known)}'
    )


def _installed_config(name: str) -> Path:
    package, _, config = name.partition('::')
    try:
        folder = config_folder(package)
    except FileNotFoundError:
        raise FileNotFoundError(
            f'the config {name!r} belongs to the package {package!r}, which '
            'is not installed'
        ) from None
    path = folder / config
    if path.suffix != '.py':  # not with_suffix(): names contain dots
        path = path.with_name(f'{path.name}.py')
    if path.is_file():
        return path
    known = [
        f'{package}::{file.relative_to(folder).as_posix()}'
        for file in sorted(folder.rglob('*.py'))
        if '_base_' not in file.parts
    ]
    raise FileNotFoundError(
        f'{package} has no config {config!r}{_did_you_mean(name, known)}'
    )


def _did_you_mean(name: str, known: list[str]) -> str:
    near = get_close_matches(name, known, n=3)
    return f'; did you mean {" or ".join(map(repr, near))}?' if near else ''


def _find_configs() -> None:
    """Let MMEngine find bases of configs in installed packages by their path.

    MMEngine alone parses all metafiles of a package for each of its bases
    (0.1 s with MMDetection), finds configs of OpenMMLab's packages only, and
    some versions find no package installed by ``pip install -e``. The scope
    of types in a base is its package. The configs of mmgfp use types of the
    library whose models they prune, so they have no scope. For mmseg, MMEngine
    requires the package mmsegmentation, but onedl-mmsegmentation contains
    mmseg, too.
    """
    others = Config._get_cfg_path

    def find(cfg_path: str, filename: str) -> tuple[str, str | None]:
        package, external, config = cfg_path.partition('::')
        if not external:
            return others(cfg_path, filename)
        own = package in ('mmgfp', 'mmseg') or not package.isidentifier()
        if not own and find_spec(package):
            path = config_folder(package) / config
            if not path.is_file():  # perhaps a name of a metafile
                return others(cfg_path, filename)
        scope = None if package == 'mmgfp' else package
        return str(_installed_config(cfg_path)), scope

    Config._get_cfg_path = staticmethod(find)


_find_configs()
