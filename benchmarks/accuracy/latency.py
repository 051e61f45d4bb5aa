"""How fast the networks of the experiments are, all measured in turn."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from torch import nn

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / 'tools')]

from benchmark_backends import forward  # noqa: E402
from benchmark_clocks import ProcessorClock  # noqa: E402
from benchmark_turns import in_turn, shares, spread  # noqa: E402
from environment import machine  # noqa: E402
from results import read_results, summaries  # noqa: E402
from run import name_of  # noqa: E402

from mmgfp.adapt import build_model  # noqa: E402
from mmgfp.checkpoint import load_plain_checkpoint  # noqa: E402
from mmgfp.cli import errors_in_one_line, positive  # noqa: E402
from mmgfp.files import complete  # noqa: E402


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        description=__doc__,
        epilog='example: python benchmarks/accuracy/latency.py cifar10 '
        '--batch 1 128',
    )
    parser.add_argument('list', help='folder in configs/')
    parser.add_argument(
        '--batch', nargs='+', type=positive, default=[1, 128], help='(1 128)'
    )
    parser.add_argument('--rounds', type=positive, default=20, help='(20)')
    parser.add_argument(
        '--work-dir', type=Path, help='of run.py (work_dirs/accuracy/<list>)'
    )
    parser.add_argument('--out', type=Path, default=HERE / 'results')
    parser.add_argument('--debug', action='store_true')
    args = parser.parse_args()
    if args.work_dir is None:
        args.work_dir = Path('work_dirs/accuracy', args.list)
    return args


def main() -> None:
    args = parse_args()
    with errors_in_one_line(args.debug):
        measure(args)


def measure(args: argparse.Namespace) -> None:
    found = summaries(read_results(args.out / f'{args.list}.jsonl'))
    networks, shape = {}, (0, 0)
    for name, summary in found.items():
        config = Config.fromfile(HERE / 'configs' / args.list / f'{name}.py')
        seed = summary.runs[0]['seed']
        rate = 0.0 if name == 'baseline' else summary.lr
        folder = args.work_dir / name_of((name, seed, rate))
        networks[name] = load(config, folder / 'model.pth')
        shape = tuple(config.input_shape)
    names = ['baseline', *(n for n in networks if n != 'baseline')]
    times = []
    for batch in args.batch:
        images = torch.randn(batch, 3, *shape)
        for backend in ('eager', 'onnxruntime'):
            runs = {n: prepare(networks[n], images, backend) for n in names}
            times.append(compare(runs, backend, batch, args.rounds))
            print(f'{backend}, batches of {batch}: done', flush=True)
    with complete(args.out / f'{args.list}_latency.json') as partial:
        result = dict(machine=machine('cpu'), rounds=args.rounds, times=times)
        Path(partial).write_text(json.dumps(result, indent=1))


def compare(
    runs: Mapping[str, Callable], backend: str, batch: int, rounds: int
) -> dict[str, Any]:
    """Milliseconds per image, and ratios to the baseline."""
    clock, repeats = ProcessorClock(), max(1, 256 // batch)

    def milliseconds(name: str) -> float:
        began = clock.mark()
        for _ in range(repeats):
            runs[name]()
        return 1000 * clock.seconds(began, clock.mark()) / repeats / batch

    took = in_turn(milliseconds, list(runs), rounds, warmup=3)
    ratios = shares(took, 'baseline')
    found = {
        n: dict(ms=spread(took[n]), ratio=spread(ratios[n])) for n in runs
    }
    return dict(backend=backend, batch=batch, networks=found)


def load(config: Config, path: Path) -> nn.Module:
    """A network whose layers are as wide as its weights are."""
    model = build_model(config)
    weights = load_plain_checkpoint(path)['state_dict']
    for name, module in model.named_modules():
        for key in (*module._parameters, *module._buffers):
            full = f'{name}.{key}'
            if full in weights:
                getattr(module, key).data = weights[full]
        if isinstance(module, nn.Conv2d):
            module.out_channels, module.in_channels = module.weight.shape[:2]
        elif isinstance(module, nn.Linear):
            module.out_features, module.in_features = module.weight.shape
        elif isinstance(module, nn.BatchNorm2d):
            module.num_features = len(module.weight)
    return model.eval()


def prepare(model: nn.Module, images: torch.Tensor, backend: str) -> Any:
    """Something that runs the network on the images when called."""
    if backend == 'eager':
        return torch.inference_mode()(forward(model, images))
    import io

    import onnxruntime

    file = io.BytesIO()
    torch.onnx.export(
        model, (images,), file, input_names=['images'], dynamo=False
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(file.getvalue(), options)
    given = {'images': images.numpy()}
    return lambda: session.run(None, given)


if __name__ == '__main__':
    main()
