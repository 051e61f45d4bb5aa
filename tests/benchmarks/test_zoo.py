"""The sweep over all families: choice, limits, resuming, tables.

What one trial does is tested in ``test_zoo_subset.py``.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from datetime import date
from pathlib import Path

import pytest
import zoo
import zoo_families
import zoo_report
import zoo_trial
from rich.console import Console
from stack import CLASSIFICATION, require
from zoo_families import Family

from mmgfp.libraries.config import load_config

LIMITS = dict(seconds=60.0, gigabytes=8.0)
FAMILY = Family('mmdet/some:variant', 'mmdet::some/some_r18.py')

# -- which configs -----------------------------------------------------------


@pytest.mark.parametrize(
    'stems, expected',
    [
        (['a_r101_fpn_1x_coco', 'a_r50_fpn_1x_coco'], 'a_r50_fpn_1x_coco'),
        (['a_r50_fpn_2x_coco', 'a_r50_fpn_1x_coco'], 'a_r50_fpn_1x_coco'),
        (['a_r50_fpn_ms-90k_coco', 'a_r50_1x_coco'], 'a_r50_1x_coco'),
        (['a-small_8xb32_in1k', 'a-nano_8xb128_in1k'], 'a-nano_8xb128_in1k'),
        (['yolox_x_8xb8-300e', 'yolox_s_8xb8-300e'], 'yolox_s_8xb8-300e'),
        (['regnetx-1.6gf_8xb8', 'regnetx-400mf_8xb8'], 'regnetx-400mf_8xb8'),
        (['a_tta', '_policies', 'a_r18_8xb16_coco'], 'a_r18_8xb16_coco'),
        ([], ''),
    ],
)
def test_smallest_by_name(stems, expected):
    assert zoo_families.smallest(stems) == expected
    assert zoo_families.smallest(stems[::-1]) == expected


def test_every_folder_is_run_or_left_out():
    families = zoo_families.all_families()
    names = [family.name for family in families]
    assert len(names) == len(set(names)) > 100
    files = [family.file_name for family in families]
    assert len(set(files)) == len(files)
    configs = [family.config for family in families]
    assert len(set(configs)) == len(configs)
    for library in zoo_families.LIBRARIES:
        folders = {
            f'{library}/{folder.name}'
            for folder in zoo_families._folders(library)
        }
        covered = {name.partition(':')[0] for name in names}
        assert folders <= covered | set(zoo_families.left_out())


def test_exceptions_name_configs_that_exist():
    exceptions = {
        **{name: [stem] for name, (stem, _) in zoo_families.INSTEAD.items()}
    }
    for name, further in zoo_families.FURTHER.items():
        exceptions.setdefault(name, []).extend(further.values())
    require('mmpretrain')
    for name, stems in exceptions.items():
        library, _, folder = name.partition('/')
        path = zoo_families.config_folder(library) / folder
        for stem in stems:
            assert (path / f'{stem}.py').is_file(), (name, stem)
    for name in zoo_families.LEFT_OUT.keys() - {'mmdet/clrnet'}:  # is new
        library, _, folder = name.partition('/')
        assert (zoo_families.config_folder(library) / folder).is_dir(), name


def test_filter_that_matches_nothing(monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['zoo.py', '--filter', 'mmdet/nothing'])
    with pytest.raises(SystemExit, match='matches no family'):
        zoo.chosen_families(zoo.parse_args())


def test_filter_without_the_library(monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['zoo.py', '--filter', 'atss'])
    with pytest.raises(SystemExit, match="such as 'mmdet/atss'"):
        zoo.chosen_families(zoo.parse_args())


def test_filter_and_library(monkeypatch):
    def names(*arguments: str) -> list[str]:
        monkeypatch.setattr(sys, 'argv', ['zoo.py', *arguments])
        return [f.name for f in zoo.chosen_families(zoo.parse_args())]

    assert names('--filter', 'mmdet/rtmdet*') == [
        'mmdet/rtmdet',
        'mmdet/rtmdet:ins',
    ]
    assert 'mmdet/hrnet' not in names('--classification')
    assert names('--classification', '--filter', '*/hrnet') == [
        f'{CLASSIFICATION}/hrnet'
    ]
    assert len(names('--filter', '*/hrnet')) == 2


# -- running -----------------------------------------------------------------


def sweep(folder: Path, code: str, **options) -> zoo.Sweep:
    """One whose trials are ``code``, which knows step and folder."""
    script = folder / 'trial.py'
    script.write_text(
        'import json, pathlib, sys\n'
        'step, folder = sys.argv[1], pathlib.Path(sys.argv[3])\n'
        'def note(**values):\n'
        "    text = json.dumps({'step': step, **values})\n"
        "    (folder / 'result.json').write_text(text)\n"
        f'{code}\n'
    )
    limits = {**LIMITS, **options}
    return zoo.Sweep(folder / 'out', limits, script=script)


def test_both_steps_run_and_their_result_is_kept(tmp_path):
    work = sweep(
        tmp_path,
        """
seen = folder / 'seen'
seen.open('a').write(step)
note(prunable=3, said=seen.read_text())
""",
    )
    assert work.missing([FAMILY]) == [FAMILY]
    out = Console(file=io.StringIO(), width=200)
    work.run([FAMILY], out)
    result = json.loads(work.file(FAMILY).read_text())
    assert result['said'] == 'prunecheck'
    assert result['family'] == FAMILY.name
    assert 'mmdet/some:variant' in out.file.getvalue()
    assert '1 of 1' in out.file.getvalue()
    assert work.missing([FAMILY]) == []
    assert work.missing([FAMILY], fresh=True) == [FAMILY]
    assert not list((tmp_path / 'out/errors').iterdir())


@pytest.mark.parametrize(
    'code, words',
    [
        ("raise SystemExit('gone wrong')", 'status 1: gone wrong'),
        ('import os; os.kill(os.getpid(), 11)', 'SIGSEGV'),
        ("note(error='no weights'); sys.exit(1)", 'no weights'),
        ("note(error='bad_alloc'); sys.exit(1)", 'more than 8 GB of memory'),
        ('1 / 0', 'ZeroDivisionError'),
    ],
)
def test_crash_becomes_the_result(tmp_path, code, words):
    result = sweep(tmp_path, code).family(FAMILY)
    assert words in result['error']
    assert words in zoo_report.verdict(result)
    if 'note' not in code:
        assert (tmp_path / 'out/errors/mmdet-some-variant.txt').exists()


def test_limit_of_time(tmp_path):
    code = "import time; note(step='groups'); time.sleep(60)"
    began = time.monotonic()
    result = sweep(tmp_path, code, seconds=2).family(FAMILY)
    assert time.monotonic() - began < 20
    assert result['error'] == 'takes more than 2 s'
    assert zoo_report.verdict(result).startswith('finding groups fails')
    # more time is a reason to try again, less is none
    assert sweep(tmp_path, code, seconds=1).missing([FAMILY]) == []
    assert sweep(tmp_path, code, seconds=3).missing([FAMILY]) == [FAMILY]


def test_limit_of_memory(tmp_path):
    """With the real script, which limits itself."""
    work = zoo.Sweep(tmp_path, dict(seconds=120, gigabytes=0.3))
    result = work.family(
        Family('other/vgg', f'{CLASSIFICATION}::vgg/vgg11_8xb32_in1k.py')
    )
    assert result['error'] == 'needs more than 0.3 GB of memory'


def test_other_versions_run_again(tmp_path):
    work = sweep(tmp_path, 'note(prunable=0)')
    work.family(FAMILY)
    assert not work.missing([FAMILY])
    other = Family(FAMILY.name, 'mmdet::some/some_r50.py')
    assert work.missing([other]) == [other]
    work.versions = {**work.versions, 'torch': '1.0'}
    assert work.missing([FAMILY]) == [FAMILY]


def test_interrupted_sweep_goes_on(tmp_path, monkeypatch):
    families = [Family(f'mmdet/{x}', f'mmdet::{x}/{x}.py') for x in 'abc']
    work = sweep(tmp_path, 'note(prunable=0)')
    run_family = work.family

    def interrupted(family):
        if family.name == 'mmdet/b':
            raise KeyboardInterrupt
        return run_family(family)

    monkeypatch.setattr(work, 'family', interrupted)
    out = Console(file=io.StringIO())
    with pytest.raises(KeyboardInterrupt):
        work.run(families, out)
    again = sweep(tmp_path, 'note(prunable=0)')
    missing = again.missing(families)
    assert families[1] in missing and families[0] not in missing
    again.run(missing, out)
    assert again.missing(families) == []


def test_other_rows_of_a_table_stay(tmp_path):
    """Of a folder that holds the table alone, as it is in the repository."""
    out = tmp_path / 'out'
    out.mkdir()
    kept = dict(GOOD, family='mmdet/atss', config='mmdet::atss/a.py')
    (out / 'results.json').write_text(json.dumps([kept]))
    work = sweep(tmp_path, 'note(prunable=0)')
    work.family(FAMILY)
    zoo_report.write_report(out, work.versions)
    results = json.loads((out / 'results.json').read_text())
    assert [r['family'] for r in results] == ['mmdet/atss', FAMILY.name]
    assert results[0] == kept
    current = sweep(tmp_path, 'note(prunable=0)')
    current.versions = GOOD['versions']
    assert not current.missing([Family('mmdet/atss', 'mmdet::atss/a.py')])


def test_ending_the_sweep_ends_its_processes(tmp_path):
    command = [sys.executable, zoo.__file__, '--out', str(tmp_path)]
    with subprocess.Popen(
        [*command, '--filter', '*/wrn'],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, 'TMPDIR': str(tmp_path)},
    ) as process:

        def trials() -> list[int]:
            found = []
            for output in Path('/proc').glob('[0-9]*/fd/1'):
                with suppress(OSError):  # it may have ended
                    if os.readlink(output).startswith(f'{tmp_path}/zoo-'):
                        found.append(int(output.parts[2]))
            return found

        while not trials():
            assert process.poll() is None
            time.sleep(0.1)
        process.terminate()
        assert (
            'run the same command to resume'
            in process.communicate(timeout=60)[0]
        )
    assert process.returncode == 130
    assert not trials()
    assert not list((tmp_path / 'families').iterdir())


def test_sweep_keeps_its_code(tmp_path):
    """Changes of the code while it runs do not get into it."""
    work = sweep(tmp_path, 'import mmgfp; note(where=mmgfp.__file__)')
    (tmp_path / 'trial.py').write_text('raise SystemExit(1)')
    where = Path(work.family(FAMILY)['where'])
    assert where.parent != Path(zoo.mmgfp.__file__).parent
    assert (where.parent / 'tracing' / 'labels.py').exists()


# -- tables ------------------------------------------------------------------

GOOD = dict(
    family='mmdet/atss',
    config='mmdet::atss/atss_r18.py',
    architecture='ATSS',
    versions={'mmgfp': '1', 'torch': '2'},
    shape=[128, 128],
    mode='tensor',
    step='done',
    groups=30,
    prunable=20,
    reach=0.93,
    left=0.501,
    error_single=3e-7,
    loss='yes',
    predict='yes',
    seconds=2.34,
    memory_mb=900,
    frozen=[
        dict(reason='reaches an output', groups=2, flops=0.2, example='cls')
    ],
)
BAD = [
    dict(GOOD, family='mmdet/rounding', error_single=4e-5, error_double=1e-15),
    dict(GOOD, family='mmdet/wrong', error_single=4e-2, error_double=4e-2),
    dict(GOOD, family='mmdet/nan', error_single=float('nan')),
    dict(GOOD, family='mmdet/noloss', loss='KeyError: boxes'),
    dict(GOOD, family='mmdet/neither', loss='nor unpruned: TypeError'),
    dict(
        GOOD,
        family='mmdet/kernel',
        error='RuntimeError: carafe_forward_impl: implementation for device '
        'cpu not found.',
    ),
    dict(GOOD, family='mmpretrain/fixed', prunable=0, reach=0.0),
    dict(
        family='mmpretrain/crash',
        config='mmpretrain::a/a.py',
        versions={},
        step='build',
        error='ImportError: no x | y',
    ),
]


def test_verdicts():
    verdicts = {r['family']: zoo_report.verdict(r) for r in [GOOD, *BAD]}
    assert verdicts == {
        'mmdet/atss': 'ok',
        'mmdet/rounding': 'ok',
        'mmdet/wrong': 'slim differs from masked by 4e-02, 4e-02 in double',
        'mmdet/nan': 'slim differs from masked by nan',
        'mmdet/noloss': 'loss: KeyError: boxes',
        'mmdet/neither': 'ok',
        'mmdet/kernel': 'needs a GPU: mmcv has no carafe for CPUs',
        'mmpretrain/fixed': 'nothing can be pruned',
        'mmpretrain/crash': 'does not build: ImportError: no x | y',
    }


def test_report():
    text = zoo_report.report(
        [GOOD, *BAD],
        GOOD['versions'],
        {'mmdet/glip': 'reads text'},
        '2 cores',
        date(2026, 1, 2),
    )
    assert '2026-01-02, 2 cores, mmgfp 1, torch 2' in text
    assert '3 of 9 architectures pass all checks' in text
    assert '1 rows are of other versions' in text
    row = (
        '| atss | 20 / 30 | 93.0% | 50.1% | 3e-07 |  | yes | yes | 2.3 | 900 |'
    )
    assert f'{row} ok |' in text
    assert 'no x \\| y' in text  # or the table would have another column
    assert '2 groups, 20% of the flops: reaches an output' in text
    assert '| mmdet/glip | reads text |' in text


def test_files_of_the_report(tmp_path):
    (tmp_path / 'families').mkdir()
    for result in [GOOD, *BAD]:
        name = result['family'].replace('/', '-')
        (tmp_path / 'families' / f'{name}.json').write_text(json.dumps(result))
    zoo_report.write_report(tmp_path, GOOD['versions'])
    results = json.loads((tmp_path / 'results.json').read_text())
    assert results[0]['family'] == 'mmdet/atss'
    assert len(results) == 9
    assert (tmp_path / 'reach.png').read_bytes()[:4] == b'\x89PNG'
    assert '## mmpretrain' in (tmp_path / 'README.md').read_text()


# -- parts of a trial --------------------------------------------------------


def test_nothing_is_loaded_from_elsewhere():
    config = zoo_trial.untrained_config(
        load_config('mmdet::retinanet/retinanet_r50_fpn_1x_coco.py')
    )
    text = config.pretty_text
    assert 'torchvision://' not in text and 'Pretrained' not in text
    assert config.model.backbone.frozen_stages == -1
    assert config.model.bbox_head.loss_cls.type == 'FocalLoss'


def test_initialisations_that_load_files():
    loads = zoo_trial.loads_file
    assert loads(dict(type='Pretrained', checkpoint='a.pth'))
    assert loads([dict(type='Normal'), dict(type='PretrainedInit')])
    assert loads('torchvision://resnet50')
    assert not loads(dict(type='Kaiming', layer='Conv2d'))
    assert not loads(None)


def test_reasons_are_the_same_for_all_layers():
    known = {'backbone.conv1', 'head.fc'}
    reasons = {
        zoo_trial.without_names(text, known)
        for text in (
            'goes through sort in backbone.conv1',
            'goes through sort in head.fc',
        )
    }
    assert reasons == {'goes through sort in a layer'}
    assert 'N' in zoo_trial.without_names('output 3 differs by 1.2e-01', known)
    assert zoo_trial.without_names(
        'head.fc.width = 7 counts, frozen_stages=-1 unfreezes', known
    ) == ('width of a layer = N counts, frozen_stages=-1 unfreezes')
