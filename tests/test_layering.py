"""Imports go in one direction, and the core needs torch alone."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import mmgfp

FOLDER = Path(mmgfp.__file__).parent
MODULES = sorted(p.stem for p in FOLDER.glob('*.py'))

LIBRARIES = {'mmdet', 'mmpretrain', 'mmcls', 'mmseg', 'mmpose', 'mmcv'}
EXTRAS = ('onnx', 'onnxruntime')  # only exporting needs them
EDGE = {  # may import mmengine
    *('adapt', 'artifacts', 'builder', 'cli', 'config', 'config_text'),
    *('demo', 'hook', 'kinds'),
    *('predictions', 'preprocessing', 'randomness', 'registry'),
    'report_predictions',
    *('rounding', 'runner_state', 'samples', 'structure_hook'),
}


def imports(path: Path) -> Iterator[tuple[str, str, bool]]:
    """(package, module of mmgfp or '', whether inside a function)."""
    tree = ast.parse(path.read_text())
    inside = {
        id(node)
        for scope in ast.walk(tree)
        if isinstance(scope, (ast.FunctionDef, ast.AsyncFunctionDef))
        for node in ast.walk(scope)
    }
    for node in ast.walk(tree):
        deep = id(node) in inside
        if isinstance(node, ast.Import):
            for alias in node.names:
                package, _, rest = alias.name.partition('.')
                yield package, rest if package == 'mmgfp' else '', deep
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                names = (
                    [node.module]
                    if node.module
                    else [alias.name for alias in node.names]
                )
                for name in names:
                    yield 'mmgfp', name, deep
            else:
                package, _, rest = (node.module or '').partition('.')
                yield package, rest if package == 'mmgfp' else '', deep


def own_imports(name: str) -> set[str]:
    return {
        module
        for package, module, _ in imports(FOLDER / f'{name}.py')
        if package == 'mmgfp'
    }


def reachable(name: str) -> set[str]:
    seen: set[str] = set()
    stack = [name]
    while stack:
        for module in own_imports(stack.pop()) - seen:
            seen.add(module)
            stack.append(module)
    return seen


@pytest.mark.parametrize('name', MODULES)
def test_no_cycles(name):
    assert name not in reachable(name)


@pytest.mark.parametrize('name', MODULES)
def test_who_may_import_mmengine(name):
    packages = {package for package, _, _ in imports(FOLDER / f'{name}.py')}
    assert 'mmengine' not in packages or name in EDGE


@pytest.mark.parametrize('name', MODULES)
def test_libraries_only_inside_functions_of_three_files(name):
    for package, _, inside in imports(FOLDER / f'{name}.py'):
        if package in LIBRARIES:
            assert name in ('adapt', 'demo', 'samples') and inside, package


@pytest.mark.parametrize('name', MODULES)
def test_extras_only_inside_functions(name):
    for package, _, inside in imports(FOLDER / f'{name}.py'):
        assert package not in (*EXTRAS, 'cv2') or inside, package


@pytest.mark.parametrize('name', sorted({*MODULES} - {'trees'}))
def test_only_one_file_knows_how_torch_walks_trees(name):
    assert '_pytree' not in (FOLDER / f'{name}.py').read_text()


def test_direction_of_the_core():
    """Each may import only what stands before it."""
    order = [
        *(
            'errors',
            'trees',
            'compiled',
            'slots',
            'surgery',
            'sizes',
            'label_layers',
            'size_facts',
        ),
        *('size_arguments', 'size_watch', 'widths', 'labels', 'layouts'),
        *('rules_common', 'rules_mixing'),
        *('rules_channelwise', 'rules_structure', 'rules_indexing'),
        *('rules_compiled', 'rules', 'groups'),
        *(
            'version',
            'unpickler',
            'checkpoint',
            'files',
            'scores',
            'structure',
        ),
        'removal',
        *(
            'modes',
            'precision',
            'selfcheck',
            'probe',
            'finder',
            'latency',
            'operations',
            'cost',
            'fisher',
            'masking',
        ),
        'selection',
        'pruner',
    ]
    for i, name in enumerate(order):
        assert own_imports(name) <= set(order[:i]), name


def test_labels_know_no_groups():
    assert own_imports('labels') == {
        *('label_layers', 'size_facts', 'size_watch', 'sizes', 'slots'),
        *('surgery', 'trees', 'widths'),
    }
    assert own_imports('groups') == {'layouts', 'slots'}
    assert 'groups' not in reachable('rules')
    for service in ('groups', 'cost', 'surgery'):
        assert not reachable(service) & {
            *('fisher', 'selection', 'pruner', 'hook', 'builder'),
        }


@pytest.mark.parametrize('name', sorted({*MODULES} - {'__init__'}))
def test_nobody_imports_the_edge(name):
    assert not own_imports(name) & {
        *('hook', 'builder', 'structure_hook', '__init__')
    }


def test_import_needs_neither_library():
    """In a fresh process in which they cannot be found."""
    code = f"""
import sys
for name in {[*sorted(LIBRARIES), *EXTRAS]!r}:
    sys.modules[name] = None
import mmgfp, mmgfp.adapt, mmgfp.cli, mmgfp.export, mmgfp.export_check
import mmgfp.report
print(mmgfp.find_groups.__name__)
"""
    done = subprocess.run(
        [sys.executable, '-c', code],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == 'find_groups'
