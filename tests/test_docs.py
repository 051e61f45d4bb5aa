"""What README and docs name is there: files, links, options of commands."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from toy import ROOT

PAGES = [ROOT / 'README.md', *sorted((ROOT / 'docs').rglob('*.md'))]
LINK = re.compile(r'\]\((?!https?:)([^)#\s]+)(#[^)\s]*)?\)')
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
                if 'tools/' in line
            ]
    return sorted(set(found))


@cache
def options(tool: str, *subcommand: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, str(ROOT / 'tools' / tool), *subcommand, '--help'],
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


def test_files_of_the_readme():
    text = (ROOT / 'README.md').read_text(encoding='utf-8')
    table = text[text.index('## Files') : text.index('## Installing')]
    named = set(re.findall(r'`(?:mmgfp/)?([\w*]+\.py)`', table))
    there = {f.name for f in (ROOT / 'mmgfp').glob('*.py')}
    for folder in ('tools', 'benchmarks/accuracy'):
        there |= {f.name for f in (ROOT / folder).glob('*.py')}
    rules = {name for name in there if name.startswith('rules_')}
    missing = there - rules - named - {'__init__.py', 'version.py'}
    assert not missing
    assert named - {'rules_*.py'} <= there


@pytest.mark.parametrize('command', commands())
def test_options_of_commands(command):
    words = shlex.split(command)
    at = next(i for i, word in enumerate(words) if 'tools/' in word)
    tool, rest = Path(words[at]).name, words[at + 1 :]
    assert (ROOT / 'tools' / tool).is_file()
    subcommand = rest[:1] if tool == 'benchmark.py' else []
    for word in rest:
        if word.startswith('--'):
            assert word in options(tool, *subcommand), word
