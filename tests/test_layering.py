"""Imports go in one direction, and the core needs torch alone."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import mmgfp

FOLDER = Path(mmgfp.__file__).parent
FILES = sorted(FOLDER.rglob('*.py'))

# Each room imports only from those above it in this table, and from itself.
ROOMS = {
    'utils': 'services without knowledge of pruning',
    'rows': 'the image of each row of a tensor',
    'groups': 'channel groups',
    'slimming': 'cutting networks, and the record of what was cut',
    'tracing': 'finding channel groups, and proving them',
    'cost': 'cost of a network, also without some units',
    'criteria': 'scores: growth of the loss without a unit',
    'search': 'choice of units and widths',
    'libraries': 'code specific to MMDetection, MMPretrain and others',
    'report': 'tables, pictures, pages',
    'export': 'ONNX files',
    'registry': 'names for configs',
    'engine': 'pruning inside a runner of MMEngine',
    'speed': 'measurement of time and memory of networks',
    'commands': 'the subcommands, and shared code',
}
CORE = list(ROOMS)[: list(ROOMS).index('libraries')]

LIBRARIES = {'mmdet', 'mmpretrain', 'mmcls', 'mmseg', 'mmpose', 'mmcv'}
EXTRAS = ('onnx', 'onnxruntime')  # only exporting needs them
SETUP = FOLDER.parent / 'setup.py'
# score to mask: the row of CONTRIBUTING.md, at most so many files and lines
PATH = '| follow a score to the mask |'
MOST_FILES, MOST_LINES = 5, 700


def name_of(path: Path) -> str:
    """Such as ``'tracing.finder'``."""
    return '.'.join(path.relative_to(FOLDER).with_suffix('').parts)


def room_of(name: str) -> str:
    return name.partition('.')[0]


NAMES = {name_of(path): path for path in FILES}


@cache
def imports(name: str) -> list[tuple[str, str, bool]]:
    """(package, module of mmgfp or '', whether inside a function)."""
    tree = ast.parse(NAMES[name].read_text())
    inside = {
        id(node)
        for scope in ast.walk(tree)
        if isinstance(scope, (ast.FunctionDef, ast.AsyncFunctionDef))
        for node in ast.walk(scope)
    }
    package = ['mmgfp', *name.split('.')[:-1]]
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level]
            parts = above if node.level else []
            targets = ['.'.join([*parts, *filter(None, [node.module])])]
        else:
            continue
        for target in targets:
            top, _, rest = target.partition('.')
            module = rest if top == 'mmgfp' else ''
            found.append((top, module, id(node) in inside))
    return found


def own_imports(name: str) -> set[str]:
    return {module for _, module, _ in imports(name) if module}


def reachable(name: str) -> set[str]:
    seen: set[str] = set()
    stack = [name]
    while stack:
        for module in own_imports(stack.pop()) - seen:
            seen.add(module)
            stack.append(module)
    return seen


def test_every_file_is_in_a_room():
    named = {room_of(name) for name in NAMES}
    assert named == {*ROOMS, '__init__', '__main__', 'version'}


def test_rooms_import_from_those_above_in_the_table():
    order = ['version', *ROOMS, '__init__', '__main__']
    wrong = [
        (name, module)
        for name in NAMES
        for module in own_imports(name)
        if order.index(room_of(module)) > order.index(room_of(name))
    ]
    assert not wrong


def test_modules_are_imported_not_rooms():
    wrong = {n: own_imports(n) - NAMES.keys() for n in NAMES}
    assert not {n: modules for n, modules in wrong.items() if modules}


def test_no_cycles():
    assert not [name for name in NAMES if name in reachable(name)]


def test_the_core_knows_no_mmengine():
    core = [name for name in NAMES if room_of(name) in CORE]
    assert not [n for n in core if 'mmengine' in {p for p, *_ in imports(n)}]


def test_installing_it_alone_brings_what_it_imports():
    (required,) = (
        ast.literal_eval(node.value)
        for node in ast.walk(ast.parse(SETUP.read_text()))
        if isinstance(node, ast.keyword) and node.arg == 'install_requires'
    )
    names = {re.split('[<>=]', package)[0] for package in required}
    known = {'mmgfp', 'mmengine', *names, *sys.stdlib_module_names}
    wrong = [
        (name, package)
        for name in NAMES
        for package, _, inside in imports(name)
        if package not in known and not inside
    ]
    assert not wrong


def test_libraries_only_in_their_room_and_inside_functions():
    wrong = [
        (name, package)
        for name in NAMES
        for package, _, inside in imports(name)
        if package in LIBRARIES
        and not (room_of(name) == 'libraries' and inside)
    ]
    assert not wrong


def test_extras_only_inside_functions():
    wrong = [
        (name, package)
        for name in NAMES
        for package, _, inside in imports(name)
        if package in (*EXTRAS, 'cv2') and not inside
    ]
    assert not wrong


def test_classes_stay_small():
    """At most ten public methods of their own."""
    large = {}
    for name in NAMES:
        for node in ast.walk(ast.parse(NAMES[name].read_text())):
            if isinstance(node, ast.ClassDef):
                methods = [
                    child.name
                    for child in node.body
                    if isinstance(child, ast.FunctionDef)
                    and not child.name.startswith('_')
                    and not any(  # attributes that are computed
                        isinstance(d, ast.Name) and d.id == 'property'
                        for d in child.decorator_list
                    )
                ]
                if len(methods) > 10:
                    large[name, node.name] = methods
    assert not large


def test_a_score_is_followed_to_the_mask_in_a_few_files():
    page = (FOLDER.parent / 'CONTRIBUTING.md').read_text()
    (row,) = (r for r in page.splitlines() if r.startswith(PATH))
    files = re.findall('`(mmgfp/[^`]*)`', row)
    texts = [(FOLDER.parent / file).read_text() for file in files]
    assert 1 < len(files) <= MOST_FILES
    assert sum(len(t.splitlines()) for t in texts) <= MOST_LINES


def test_only_one_file_knows_how_torch_walks_trees():
    found = [n for n, p in NAMES.items() if '_pytree' in p.read_text()]
    assert found == ['utils.trees']


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
import mmgfp, mmgfp.libraries.models, mmgfp.export.onnx
import mmgfp.commands.main
import mmgfp.export.check, mmgfp.report.page
print(mmgfp.find_groups.__name__)
"""
    assert run_without([*LIBRARIES, *EXTRAS], code) == 'find_groups'


WITHOUT = """
import sys
import torch, torchvision
from torch.nn.functional import cross_entropy
import mmgfp
from mmgfp import *
from mmgfp import ChannelGroup, Prunable, Pruner, Structure

torch.set_num_threads(1)
images = torch.rand(2, 3, 32, 32)
build = lambda: torchvision.models.squeezenet1_1(num_classes=5)
run = lambda m: m(images)
model = build()
pruner = Pruner(Prunable.find(model, run, images=2))
cross_entropy(run(model), torch.tensor([0, 1])).backward()
pruner.criterion.end_batch()
pruner.prune(lambda n: pruner.net.ratio('flops') <= 0.5)
pruner.detach()
pruner.net.structure().save(sys.argv[1])
slim = build().eval()
Structure.load(sys.argv[1]).apply(slim)
slim.load_state_dict(model.state_dict())
assert torch.equal(run(slim), run(model.eval()))
for name in ('PruningHook', 'SparsityHook', 'build_pruned_model'):
    try:
        getattr(mmgfp, name)
    except ImportError as error:
        assert name in str(error) and 'pip install' in str(error), error
    else:
        raise AssertionError(name)
assert not hasattr(mmgfp, 'no_such_name')
print(f"{pruner.net.ratio('flops'):.1f}")
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
    mmgfp.PruningHook
except ModuleNotFoundError as error:
    print(error.name)
"""
    assert run_without([], code) == 'no_such_package'
