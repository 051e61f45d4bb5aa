"""Where networks of run.py lose: on new pictures, or on those of training too.

Each is tested again: as it is, with statistics of BatchNorm made anew from
training pictures, and on the training pictures without augmentation.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.runner import Runner, find_latest_checkpoint
from torch import nn

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from experiment import parse_args as experiment_args  # noqa: E402
from experiment import read_config, test  # noqa: E402
from latency import build  # noqa: E402
from results import Result, score  # noqa: E402

from mmgfp.commands.errors import errors_in_one_line  # noqa: E402
from mmgfp.commands.options import add_debug_option  # noqa: E402
from mmgfp.engine.progress import duration  # noqa: E402
from mmgfp.slimming.checkpoint import load_plain_checkpoint  # noqa: E402
from mmgfp.utils.atomic import complete  # noqa: E402
from mmgfp.utils.environment import machine  # noqa: E402

# that statistics are made from
PICTURES = 25000

# other kernels and numbers of threads decide a few pictures otherwise
TOLERANCE = 0.1


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog='example: python benchmarks/accuracy/diagnose.py cifar10 '
        "--data-root DATA/cifar10 --networks 'unpruned_*' 'fisher_acts_seed*'",
    )
    lists = sorted(p.name for p in (HERE / 'configs').iterdir() if p.is_dir())
    parser.add_argument('list', choices=lists, help='folder in configs/')
    parser.add_argument(
        '--data-root', required=True, help='folder of the data set'
    )
    parser.add_argument(
        '--networks',
        nargs='+',
        default=['*'],
        metavar='GLOB',
        help='folders in --work-dir; by default all that are done',
    )
    parser.add_argument(
        '--work-dir',
        type=Path,
        help='where run.py left them (work_dirs/accuracy/<list>)',
    )
    parser.add_argument(
        '--out',
        type=Path,
        default=HERE / 'results',
        help='folder for <list>_diagnosis.json (benchmarks/accuracy/results)',
    )
    add_debug_option(parser)
    args = parser.parse_args(argv)
    if args.work_dir is None:
        args.work_dir = Path('work_dirs/accuracy', args.list)
    return args


def main() -> None:
    args = parse_args()
    with errors_in_one_line(args.debug):
        diagnose_all(args)


def diagnose_all(args: argparse.Namespace) -> None:
    """All networks in turn; the file is written when the last is done.

    Raises:
        SystemExit: If a name fits no network.
    """
    folders = {path.parent for path in args.work_dir.glob('*/result.json')}
    for pattern in args.networks:
        if not any(fnmatchcase(path.name, pattern) for path in folders):
            raise SystemExit(
                f'error: --networks {pattern}: {args.work_dir} has no folder '
                'of that name with a result.json; run.py makes them'
            )
    chosen = [
        path
        for path in sorted(folders)
        if any(fnmatchcase(path.name, pattern) for pattern in args.networks)
    ]
    began, networks = time.monotonic(), []
    for done, folder in enumerate(chosen, 1):
        networks.append(diagnose(folder, args))
        left = (time.monotonic() - began) / done * (len(chosen) - done)
        words = f', about {duration(left)} left' if done < len(chosen) else ''
        print(f'{folder.name}: {done} of {len(chosen)}{words}', flush=True)
    found = dict(machine=machine(get_device()), networks=networks)
    with complete(args.out / f'{args.list}_diagnosis.json') as partial:
        Path(partial).write_text(json.dumps(found, indent=1))


def diagnose(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """One network, before and after fine-tuning.

    Returns:
        dict: ``experiment``, ``seed``, ``lr``; for ``pruned`` and
        ``finetuned`` the scores in percent on ``test`` pictures, with
        statistics ``anew`` and on ``training`` pictures.

    Raises:
        RuntimeError: If a score is not about that of the result.
    """
    result = json.loads((folder / 'result.json').read_text())
    files = dict(finetuned=str(folder / 'model.pth'))
    if (folder / 'prune').exists():
        files['pruned'] = find_latest_checkpoint(folder / 'prune')
    found = {key: result[key] for key in ('experiment', 'seed', 'lr')}
    for phase, file in files.items():
        found[phase] = scores(result, file, folder / 'diagnosis', args)
        known = score(result[phase])
        if abs(found[phase]['test'] - known) > TOLERANCE:
            raise RuntimeError(
                f'{file} comes to {found[phase]["test"]:.2f}, not to the '
                f'{known:.2f} in {folder}/result.json; delete the folder and '
                'make it again with run.py'
            )
    return found


def scores(
    result: Result, file: str, out: Path, args: argparse.Namespace
) -> dict[str, float]:
    """Of one network, in percent."""
    path = HERE / 'configs' / args.list / f'{result["experiment"]}.py'
    words = [str(path), '--data-root', args.data_root, '--out', str(out)]
    config = read_config(experiment_args(words))
    config.log_level = 'WARNING'
    model = build(config, result)
    model.load_state_dict(load_plain_checkpoint(file)['state_dict'])
    found = dict(
        test=score(test(config, model, out)),
        training=score(test(on_training(config), model, out)),
    )
    renew_statistics(config, model)
    return dict(found, anew=score(test(config, model, out)))


def on_training(config: Config) -> Config:
    """A config whose test pictures are those of training."""
    changed = copy.deepcopy(config)
    dataset = changed.test_dataloader.dataset
    for key in ('folder', 'ann_file'):
        if key in dataset:
            dataset[key] = config.train_dataloader.dataset[key]
    return changed


def renew_statistics(config: Config, model: nn.Module) -> None:
    """Statistics of BatchNorm as the means over batches of training."""
    from mmpretrain.engine.hooks.precise_bn_hook import update_bn_stats

    loader = Runner.build_dataloader(config.train_dataloader, seed=0)
    update_bn_stats(model.train(), loader, PICTURES, logger='silent')
    print()  # its progress bar ends without one


if __name__ == '__main__':
    main()
