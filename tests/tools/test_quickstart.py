"""The quickstart's own logic, with stages that take no time."""

from __future__ import annotations

import importlib.util
import io
import sys
from pathlib import Path
from types import ModuleType

import pytest
from rich.console import Console

SCRIPT = Path(__file__).resolve().parents[2] / 'tools' / 'quickstart.py'

# appends a line to a file, so that runs can be counted
WRITE = """
import pathlib, sys
path = pathlib.Path(sys.argv[-1])
path.parent.mkdir(exist_ok=True)
path.open('a').write('x\\n')
"""


def load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location('quickstart', SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look it up
    spec.loader.exec_module(module)
    return module


quickstart = load_script()


def console() -> Console:
    return Console(file=io.StringIO(), width=100)


def stage(folder: Path, code: str = WRITE, **options):
    output = folder / 'baseline' / 'out.txt'
    return quickstart.Stage(
        'baseline', (('-c', code, str(output)),), (), output, **options
    )


def run(folder: Path, work) -> str:
    out = console()
    quickstart.Run(folder / 'stages', out).run(work)
    return out.file.getvalue()


def test_complete_stage_is_skipped(tmp_path: Path) -> None:
    assert 'starts' in run(tmp_path, stage(tmp_path))
    assert 'complete' in run(tmp_path, stage(tmp_path))
    assert (tmp_path / 'baseline/out.txt').read_text() == 'x\n'


def test_stage_runs_again_when_its_output_is_gone(tmp_path: Path) -> None:
    run(tmp_path, stage(tmp_path))
    (tmp_path / 'baseline/out.txt').unlink()
    assert 'starts' in run(tmp_path, stage(tmp_path))


def test_stages_after_one_that_ran_again_do_so_too(tmp_path: Path) -> None:
    first = stage(tmp_path)
    output = tmp_path / 'prune' / 'out.txt'
    second = quickstart.Stage(
        'prune', (('-c', WRITE, str(output)),), (), output
    )

    def both() -> list[bool]:
        out = console()
        work = quickstart.Run(tmp_path / 'stages', out)
        work.run(first)
        work.run(second)
        return ['starts' in line for line in out.file.getvalue().split('\n')]

    assert both()[:2] == [True, True]
    assert both()[:2] == [False, False]
    first.output.unlink()
    assert both()[:2] == [True, True]
    assert output.read_text() == 'x\n'


def test_other_inputs_start_afresh(tmp_path: Path) -> None:
    run(tmp_path, stage(tmp_path))
    (tmp_path / 'baseline/old.txt').write_text('of other inputs')
    other = stage(tmp_path, f'{WRITE}\nprint()')
    run(tmp_path, other)
    assert [p.name for p in other.output.parent.iterdir()] == ['out.txt']
    assert other.output.read_text() == 'x\n'


def test_failing_stage_shows_the_end_of_its_log(tmp_path: Path) -> None:
    code = "print('first'); raise SystemExit('no memory left')"
    with pytest.raises(quickstart.StageError) as error:
        run(tmp_path, stage(tmp_path, code))
    assert 'no memory left' in str(error.value)
    assert 'stages/baseline.log' in str(error.value)
    assert 'status 1' in str(error.value)
    # and it is not taken for complete afterwards
    with pytest.raises(quickstart.StageError):
        run(tmp_path, stage(tmp_path, code))


WAIT = """
import sys, pathlib, time
there = pathlib.Path(sys.argv[1])
there.with_name(sys.argv[2]).write_text('')
while not there.with_name(sys.argv[3]).exists():
    time.sleep(0.01)
# in one piece: print() without a buffer writes the end of a line by itself
sys.stdout.write(sys.argv[2] + '\\n')
"""


def test_processes_of_a_stage_run_at_the_same_time(tmp_path: Path) -> None:
    """Each waits for a file of the other."""
    output = tmp_path / 'a'
    commands = tuple(
        ('-c', WAIT, str(output), *names) for names in ('ab', 'ba')
    )
    run(tmp_path, quickstart.Stage('test', commands, (), output))
    log = (tmp_path / 'stages/test.log').read_text()
    assert sorted(log.split()) == ['a', 'b']


def test_a_process_that_fails_ends_the_others(tmp_path: Path) -> None:
    output = tmp_path / 'a'
    # its last line comes long before it ends
    fails = (
        'import sys, time; print("no memory left", flush=True); '
        'time.sleep(0.5); sys.exit(1)'
    )
    waits = ('-c', WAIT, str(output), 'a', 'never')
    commands = (waits, ('-c', fails))
    with pytest.raises(quickstart.StageError) as error:
        run(tmp_path, quickstart.Stage('test', commands, (), output))
    assert 'no memory left' in str(error.value)
    assert 'status 1' in str(error.value)


def test_stage_without_its_output_has_failed(tmp_path: Path) -> None:
    with pytest.raises(quickstart.StageError, match='ended without'):
        run(tmp_path, stage(tmp_path, 'pass'))


def test_interrupted_training_goes_on(tmp_path: Path) -> None:
    code = "import sys; sys.exit('resumed' not in sys.argv)"
    work = stage(tmp_path, code, resume=('resumed',))
    with pytest.raises(quickstart.StageError):
        run(tmp_path, work)
    work.output.parent.mkdir()
    (work.output.parent / 'last_checkpoint').write_text('epoch_1.pth')
    work.output.write_text('')
    assert 'goes on' in run(tmp_path, work)


def test_second_run_at_the_same_time_is_refused(tmp_path: Path) -> None:
    first = quickstart.Run(tmp_path / 'stages', console())
    with pytest.raises(quickstart.StageError, match='another run'):
        quickstart.Run(tmp_path / 'stages', console())
    del first
    quickstart.Run(tmp_path / 'stages', console())


def test_progress_is_read_from_the_log(tmp_path: Path) -> None:
    lines = (
        '- Epoch(train) [2][ 50/250]  lr: 1e-3  eta: 0:01:30  time: 0.1',
        '- Epoch(val) [2][25/25]    coco/bbox_mAP: 0.5530  coco/bbox_mAP_50:',
        '- pruning: flops 0.949, params 0.9, acts 0.9; 46 channels pruned, x',
    )
    code = f'{WRITE}\nprint({chr(10).join(lines)!r})'
    shown = run(tmp_path, stage(tmp_path, code))
    assert 'epoch 2: mAP 0.5530' in shown
    assert 'flops 0.949, params 0.9, acts 0.9; 46 channels pruned' in shown


def test_time_left_follows_a_measured_iteration(tmp_path: Path) -> None:
    usual = quickstart.USUAL_ITERATION
    line = f'Epoch(train) [1][ 50/250] lr: 1 eta: 0:01:00  time: {2 * usual}'
    code = f'{WRITE}\nprint({line!r})'
    shown = run(tmp_path, stage(tmp_path, code))
    names = list(quickstart.USUAL)
    later = names[names.index('baseline') + 1 :]
    left = 60 + 2 * sum(quickstart.USUAL[name] for name in later)
    assert f'about {quickstart._clock(left)} to the end' in shown


@pytest.mark.parametrize('masks', [{}, dict(mask_mAP=0.6)])
def test_results_fit_a_narrow_terminal(masks) -> None:
    row = dict(
        mAP=0.7,
        flops=1362328320,
        params=3491102,
        acts=666390,
        ms_per_image=125.8,
        onnx_ms=100.25,
    )
    row.update(masks)
    summary = dict(baseline=row, pruned=row, finetuned=row, seconds=1.0)
    out = Console(file=io.StringIO(), width=80)
    out.print(quickstart.results_table(summary, 'title'))
    text = out.file.getvalue()
    assert '1.36 G 100%' in text
    assert '3.49 M 100%' in text
    assert '0.700' in text
    assert ('0.600' in text) == bool(masks)
    assert '…' not in text


def test_precision_of_masks_if_there_are_any(tmp_path: Path) -> None:
    path = tmp_path / '20260101_000000' / 'metrics.json'
    path.parent.mkdir()
    path.write_text('{"coco/bbox_mAP": 0.5}')
    assert quickstart.mean_average_precision(tmp_path) == dict(mAP=0.5)
    path.write_text('{"coco/bbox_mAP": 0.5, "coco/segm_mAP": 0.25}')
    found = quickstart.mean_average_precision(tmp_path)
    assert found == dict(mAP=0.5, mask_mAP=0.25)


def test_a_config_and_what_it_is_based_on() -> None:
    paths = quickstart.Paths(Path(), 'mask_rcnn')
    names = [p.name for p in quickstart.with_bases(paths.prune_config)]
    assert names == [
        'prune_mask_rcnn_r18_digits.py',
        'mask_rcnn_r18_digits.py',
        'faster_rcnn_r18_digits.py',
        'digits_detection.py',
        'digits_pruning.py',
    ]


@pytest.mark.parametrize(
    'busy, processes, threads',
    [
        ([2.0, 6.0], 1, 2),
        ([95.0, 20.0], 1, 1),
        ([99.0, 99.0], 1, 1),
        # only the first two cores may be used
        ([2.0, 6.0, 99.0, 99.0], 1, 2),
        ([2.0, 6.0], 3, 1),
    ],
)
def test_as_many_threads_as_free_cores(monkeypatch, busy, processes, threads):
    import psutil

    monkeypatch.setattr(psutil, 'cpu_percent', lambda *_, percpu: busy)
    monkeypatch.setattr(psutil.Process, 'cpu_affinity', lambda self: [0, 1])
    policy = {} if threads == 2 else {'OMP_WAIT_POLICY': 'PASSIVE'}
    found = quickstart._threads(processes)
    assert found == {'OMP_NUM_THREADS': str(threads), **policy}
