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
REQUIRED = {'matplotlib', 'numpy', 'rich', 'scipy', 'torch'}  # by setup.py
EDGE = {  # may import mmengine
    '__init__',  # only to see whether it is there
    *('adapt', 'artifacts', 'builder', 'cli', 'config', 'config_text'),
    *('demo', 'hook', 'kinds', 'pipeline'),
    *('predictions', 'preprocessing', 'randomness', 'registry'),
    'report_predictions',
    *('rounding', 'runner_state', 'samples', 'structure_hook', 'tta'),
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
def test_installing_it_alone_brings_what_it_imports(name):
    for package, _, inside in imports(FOLDER / f'{name}.py'):
        known = {'mmgfp', 'mmengine', *REQUIRED, *sys.stdlib_module_names}
        assert package in known or inside, package


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
            'origins',
            'slots',
            'surgery',
            'optimizers',
            'sizes',
            'caches',
            'label_layers',
            'size_facts',
            'unread',
        ),
        *('size_arguments', 'size_watch', 'widths', 'labels', 'layouts'),
        *('rules_common', 'rules_mixing'),
        *('rules_channelwise', 'rules_structure', 'rules_indexing'),
        *('rules_compiled', 'rules', 'groups'),
        *(
            'version',
            'plain',
            'unpickler',
            'archive',
            'checkpoint',
            'files',
            'scores',
            'structure',
        ),
        'removal',
        *(
            'draws',
            'modes',
            'precision',
            'suspects',
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
        *('label_layers', 'origins', 'size_facts', 'size_watch', 'sizes'),
        *('slots', 'surgery', 'trees', 'unread', 'widths'),
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


def run_without(packages: list[str], code: str) -> str:
    """What a fresh process prints in which packages cannot be found."""
    hide = f'import sys\nfor name in {packages!r}: sys.modules[name] = None\n'
    done = subprocess.run(
        [sys.executable, '-c', hide + code],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_needs_neither_library():
    code = """
import mmgfp, mmgfp.libraries.models, mmgfp.cli, mmgfp.export.onnx, mmgfp.export.check
import mmgfp.report.page
print(mmgfp.find_groups.__name__)
"""
    assert run_without([*LIBRARIES, *EXTRAS], code) == 'find_groups'


WITHOUT = """
import sys
import torch, torchvision
from torch.nn.functional import cross_entropy
import mmgfp
from mmgfp import *
from mmgfp import ChannelGroup, GroupFisherPruner, Structure, find_groups
from mmgfp.cost.model import record_calls

torch.set_num_threads(1)
images = torch.rand(2, 3, 32, 32)
build = lambda: torchvision.models.squeezenet1_1(num_classes=5)
run = lambda m: m(images)
model = build()
groups = find_groups(model, run, images=2)
pruner = GroupFisherPruner(
    model, groups, record_calls(model.eval(), lambda: run(model), images=2))
pruner.attach()
cross_entropy(run(model), torch.tensor([0, 1])).backward()
pruner.accumulate()
pruner.prune(lambda n: pruner.ratio('flops') <= 0.5)
pruner.detach()
pruner.structure().save(sys.argv[1])
slim = build().eval()
Structure.load(sys.argv[1]).apply(slim)
slim.load_state_dict(model.state_dict())
assert torch.equal(run(slim), run(model.eval()))
for name in ('FisherPruningHook', 'StructureHook', 'build_pruned_model'):
    try:
        getattr(mmgfp, name)
    except ImportError as error:
        assert name in str(error) and 'pip install' in str(error), error
    else:
        raise AssertionError(name)
assert not hasattr(mmgfp, 'no_such_name')
print(f"{pruner.ratio('flops'):.1f}")
"""


def test_prunes_without_mmengine(tmp_path):
    """Of what a library of detectors brings, torchvision is enough."""
    code = f'sys.argv.append({str(tmp_path / "slim.json")!r})\n{WITHOUT}'
    hidden = ['mmengine', *LIBRARIES, *EXTRAS, 'cv2', 'yapf', 'addict']
    assert run_without(hidden, code) == '0.5'


def test_a_broken_mmengine_is_not_taken_for_none(tmp_path):
    (tmp_path / 'mmengine').mkdir()
    broken = tmp_path / 'mmengine' / '__init__.py'
    broken.write_text('import no_such_package')
    code = f"""
sys.path.insert(0, {str(tmp_path)!r})
try:
    import mmgfp
except ModuleNotFoundError as error:
    print(error.name)
"""
    assert run_without([], code) == 'no_such_package'
