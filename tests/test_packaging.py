"""What is built of the project can be installed, and has all it needs."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from processes import ROOT
from stack import require

from mmgfp.version import __version__

# what a clone has for building
SOURCES = ('setup.py', 'pyproject.toml', 'README.md', 'LICENSE')


def run(*command: object, **env: str) -> str:
    clean = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'}
    done = subprocess.run(
        list(map(str, command)),
        env={**clean, 'OMP_NUM_THREADS': '1', **env},
        cwd='/',
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def pip(*arguments: object) -> str:
    options = ('--disable-pip-version-check', '--no-input')
    return run(sys.executable, '-m', 'pip', *options, *arguments)


def wheel_of(source: Path, out: Path) -> Path:
    pip(
        *('wheel', source, '--wheel-dir', out, '--no-index'),
        *('--no-deps', '--no-build-isolation'),
    )
    (wheel,) = out.glob('*.whl')
    return wheel


@pytest.fixture(scope='module')
def built(tmp_path_factory) -> dict[str, Path]:
    """A wheel of a clone, and one of the sdist of it."""
    clone = tmp_path_factory.mktemp('clone')
    for name in SOURCES:
        (clone / name).symlink_to(ROOT / name)
    # as they are in a clone: with the link to the configs
    run('cp', '-a', ROOT / 'mmgfp', ROOT / 'configs', clone)
    out = tmp_path_factory.mktemp('out')
    code = (
        'import os, sys; os.chdir(sys.argv[1]); '
        'from setuptools.build_meta import build_sdist; '
        'build_sdist(sys.argv[2])'
    )
    run(sys.executable, '-c', code, clone, out)
    (sdist,) = out.glob('*.tar.gz')
    return dict(
        clone=wheel_of(clone, out / 'clone'),
        sdist=wheel_of(sdist, out / 'sdist'),
    )


def test_a_wheel_has_modules_configs_and_data(built):
    files = {
        name: set(zipfile.ZipFile(wheel).namelist())
        for name, wheel in built.items()
    }
    assert files['clone'] == files['sdist']
    for folder, place in (
        ('mmgfp', 'mmgfp'),
        ('configs', 'mmgfp/.mim/configs'),
    ):
        for path in (ROOT / folder).rglob('*.py'):
            inside = path.relative_to(ROOT / folder)
            assert f'{place}/{inside.as_posix()}' in files['clone']
    for path in (ROOT / 'mmgfp/report').glob('*.html'):
        assert f'mmgfp/report/{path.name}' in files['clone']
    assert 'mmgfp/py.typed' in files['clone']


@pytest.fixture(scope='module')
def installed(built, tmp_path_factory) -> dict[str, Path]:
    """Folders with the commands of environments that have nothing else."""
    found = {}
    packages = [sysconfig.get_path(kind) for kind in ('purelib', 'platlib')]
    for name, wheel in built.items():
        folder = tmp_path_factory.mktemp(name)
        run(sys.executable, '-m', 'venv', '--without-pip', folder)
        python = folder / 'bin' / 'python'
        pip('--python', python, 'install', '--no-index', '--no-deps', wheel)
        # what it needs is not installed a second time
        code = 'import sysconfig; print(sysconfig.get_path("purelib"))'
        site = Path(run(python, '-c', code).strip())
        (site / 'others.pth').write_text('\n'.join(dict.fromkeys(packages)))
        found[name] = folder / 'bin'
    return found


@pytest.mark.parametrize('source', ['clone', 'sdist'])
def test_the_command_is_installed(installed, source):
    folder = installed[source]
    path = f'{folder}{os.pathsep}{os.environ["PATH"]}'
    said = run('env', 'mmgfp', '--version', PATH=path)
    assert said == f'mmgfp {__version__}\n'
    assert 'latency-table' in run('env', 'mmgfp', '--help', PATH=path)
    code = 'import mmgfp; print(mmgfp.__file__)'
    where = run(folder / 'python', '-c', code).strip()
    assert Path(where).is_relative_to(folder.parent)


def test_installed_configs(installed, tmp_path):
    """A user's config is based on one of them, without any clone."""
    require('mmdet')
    mine = tmp_path / 'mine.py'
    mine.write_text(
        "_base_ = 'mmgfp::quickstart/prune_retinanet_r18_digits.py'\n"
    )
    out = tmp_path / 'groups.json'
    mmgfp = installed['sdist'] / 'mmgfp'
    run(mmgfp, 'groups', mine, '--shape', 64, 64, '--json', out)
    assert '"name": "backbone.layer1.0.conv1"' in out.read_text()
