"""Configs and programs find what mmgfp registers, however it is imported."""

from __future__ import annotations

import subprocess
import sys

import pytest
from processes import ROOT, environment

AFTER_MMENGINE = {
    'not at all': '',
    'after MMEngine': 'import mmgfp',
    'custom_imports': """
from mmengine.config import Config
Config.fromstring("custom_imports = dict(imports=['mmgfp'])", '.py')
""",
}

# Each is run in a process of its own, in which nothing was looked up before.
LOOKUPS = """
HOOKS.build(dict(type='mmgfp.FisherPruningHook', target=dict(flops=0.5)))
HOOKS.build(dict(type='mmgfp.SparsityHook', density=0.2))
HOOKS.get('mmgfp.StructureHook').__name__
HOOKS.get('mmgfp.SearchHook').__name__
MODELS.get('mmgfp.PrunedModel').__name__
in_scope(HOOKS, dict(type='FisherPruningHook', target=dict(flops=0.5)))
own().HOOKS.build(dict(type='FisherPruningHook', target=dict(flops=0.5)))
own().CRITERIA.build(dict(type='Fisher'))
own().SEARCHES.get('DCSS').__name__
package().engine.hook.PruningHook(target=dict(flops=0.5))
package().build_pruned_model.__name__
""".strip().splitlines()

CODE = """
import os, sys
{before}
import matplotlib.figure, mmengine.runner, scipy.optimize  # once for all
from mmengine.registry import HOOKS, MODELS, DefaultScope

def own():
    import mmgfp.registry
    return mmgfp.registry

def package():
    import mmgfp
    return mmgfp

def in_scope(registry, config):
    with DefaultScope.overwrite_default_scope('mmgfp'):
        return registry.build(config)

for how, imports in {then!r}.items():
    for lookup in {lookups!r}:
        child = os.fork()
        if not child:
            exec(imports)
            value = eval(lookup)
            kind = type(value).__module__
            assert kind.startswith('mmgfp.') or isinstance(value, str), lookup
            os._exit(0)
        if os.waitpid(child, 0)[1]:
            sys.exit(f'not found when imported {{how}}: {{lookup}}')
{after}
"""

BASE = """
import mmgfp, mmengine.config
with open(sys.argv[1], 'w') as file:
    file.write("_base_ = 'mmgfp::quickstart/retinanet_r18_digits.py'")
print(len(mmengine.config.Config.fromfile(sys.argv[1])))
"""


def run(code: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, '-c', code, *arguments],
        env=environment(),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ('before', 'then'),
    [('', AFTER_MMENGINE), ('import mmgfp', {'before MMEngine': ''})],
)
def test_names_are_found_however_it_is_imported(before, then, tmp_path):
    # a config's bases are read before what it imports
    after = '' if before else BASE
    code = CODE.format(before=before, then=then, lookups=LOOKUPS, after=after)
    printed = run(code, str(tmp_path / 'mine.py'))
    assert bool(printed) == bool(after)
