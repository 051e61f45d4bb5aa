"""What README and docs name is there: files, links, options of commands."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
from functools import cache

import pytest
from mmengine.registry import HOOKS
from processes import ROOT
from test_layering import ROOMS

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
