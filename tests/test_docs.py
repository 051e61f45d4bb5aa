"""What README and docs name is there: files, links, options of commands."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
from functools import cache

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import HOOKS
from processes import ROOT
from test_layering import ROOMS
from torch import nn

from mmgfp import Structure
from mmgfp.commands.main import COMMANDS

PAGES = [
    ROOT / 'README.md',
    ROOT / 'CONTRIBUTING.md',
    *sorted((ROOT / 'docs').rglob('*.md')),
]
LINK = re.compile(r'\]\((?!https?:)([^)#\s]+)(#[^)\s]*)?\)')
SCRIPT = re.compile(r'\b(tools|benchmarks)/[\w/]+\.py|\bmmgfp [a-z]')
PYTHON = re.compile(r'^```python\n(.*?)^```', re.MULTILINE | re.DOTALL)
BLOCK = re.compile(r'^```bash\n(.*?)^```', re.MULTILINE | re.DOTALL)


def names(pages):
    return [page.relative_to(ROOT).as_posix() for page in pages]


def commands() -> list[str]:
    """Lines of shell blocks that run a tool, without comments."""
    found = []
    for page in PAGES:
        for block in BLOCK.findall(page.read_text(encoding='utf-8')):
            lines = block.replace('\\\n', ' ').splitlines()
            found += [
                line.partition(' #')[0].strip()
                for line in lines
                if SCRIPT.search(line)
            ]
    return sorted(set(found))


@cache
def options(tool: str, *subcommand: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, *tool.split(), *subcommand, '--help'],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return set(re.findall(r'--[\w-]+', done.stdout))


@pytest.mark.parametrize('page', PAGES, ids=names(PAGES))
def test_links(page):
    text = page.read_text(encoding='utf-8')
    for target, anchor in LINK.findall(text):
        file = page.parent / target
        assert file.exists(), target
        if anchor:
            heads = re.findall(r'^#+ (.*)$', file.read_text(), re.MULTILINE)
            known = {re.sub(r'[^\w -]', '', h.lower()) for h in heads}
            assert anchor[1:] in {h.replace(' ', '-') for h in known}, anchor


def hooks() -> list[tuple[str, str]]:
    """Page and code of the hooks that configs on the pages have.

    Without those that need a file or a criterion of the user's.
    """
    found = []
    for page in PAGES:
        for block in PYTHON.findall(page.read_text(encoding='utf-8')):
            if 'custom_hooks' not in block:
                continue
            for node in ast.walk(ast.parse(block)):
                code = ast.unparse(node)
                if code.startswith("dict(type='mmgfp.") and not re.search(
                    'latency_table|_base_|RootMagnitude', code
                ):
                    found.append((page.name, code))
    return found


def test_hooks_in_configs():
    found = hooks()
    assert {'README.md', 'sparsity.md', 'dcss.md'} <= {
        page for page, _ in found
    }
    for _, code in found:
        HOOKS.build(eval(code))


def block(page: str, words: str) -> str:
    """The only Python block of a page that has some words."""
    text = (ROOT / 'docs' / page).read_text(encoding='utf-8')
    (found,) = (code for code in PYTHON.findall(text) if words in code)
    return found


def test_pruning_without_a_runner(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)),
    )
    images, labels = torch.randn(4, 3, 8, 8), torch.arange(4) % 3
    given = dict(
        model=model,
        images=images,
        loader=[(images, labels)] * 20,
        loss_fn=nn.CrossEntropyLoss(),
        optimizer=torch.optim.SGD(model.parameters(), lr=0.01),
    )
    exec(block('method.md', 'Prunable.find'), given)
    assert given['step'] == 20
    assert sum(len(w) for w in model.parameters() if w.dim() == 4) == 14
    pruned = Structure.load(tmp_path / 'structure.json')
    assert pruned.to_dict() == given['net'].structure().to_dict()


def test_config_for_latency(tmp_path):
    text = block('benchmarks.md', 'latency_table')
    path = tmp_path / 'latency.py'
    path.write_text(text.replace("'configs/", f"'{ROOT}/configs/"))
    (hook,) = Config.fromfile(path).custom_hooks
    assert hook.target == dict(latency=0.6) and hook.finetune


def test_files_that_are_named():
    for page in PAGES:
        text = page.read_text(encoding='utf-8')
        for path in re.findall(r'`((?:mmgfp|tests|tools)/[\w/*.]+)`', text):
            assert list(ROOT.glob(path)), (page.name, path)


def test_rooms_of_the_contributors_page():
    text = (ROOT / 'CONTRIBUTING.md').read_text(encoding='utf-8')
    named = re.findall(r'^\| `mmgfp/(\w+)(?:/|\.py)` \|', text, re.MULTILINE)
    assert named == list(ROOMS)


@pytest.mark.parametrize('command', commands())
def test_options_of_commands(command):
    words = shlex.split(command)
    if 'mmgfp' in words:
        tool, rest = '-m mmgfp', words[words.index('mmgfp') + 1 :]
        assert rest[0] in COMMANDS
    else:
        at = next(i for i, word in enumerate(words) if SCRIPT.search(word))
        tool, rest = words[at], words[at + 1 :]
        assert (ROOT / tool).is_file()
    several = tool in ('-m mmgfp', 'benchmarks/speed/benchmark.py')
    subcommand = rest[:1] if several else []
    for word in rest:
        if word.startswith('--'):
            assert word in options(tool, *subcommand), word


def test_readme_is_short():
    assert len((ROOT / 'README.md').read_bytes()) <= 10_000
