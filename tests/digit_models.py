"""Small models of the quickstart's configs with random weights, also slim."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from processes import ROOT
from pruning import First, pruner_of
from stack import require

from mmgfp.cost.model import record_calls
from mmgfp.engine.saved import finetune_config
from mmgfp.libraries.channel_groups import demo_groups
from mmgfp.libraries.config import load_config
from mmgfp.libraries.forward import demo_runner
from mmgfp.libraries.models import build_model
from mmgfp.libraries.random_weights import vary_weights_
from mmgfp.search.limits import Floor
from mmgfp.slimming.structure import KEY

QUICKSTART = ROOT / 'configs/quickstart'
SHAPE = (64, 96)

BACKBONE = 'backbone=dict(base_channels=8, init_cfg=None)'
NECK = 'neck=dict(in_channels=[8, 16, 32, 64], out_channels=16)'
DENSE = 'bbox_head=dict(in_channels=16, feat_channels=16, stacked_convs=2'
REGIONS = (
    'rpn_head=dict(in_channels=16, feat_channels=16), roi_head=dict('
    'bbox_roi_extractor=dict(out_channels=16), '
    'bbox_head=dict(in_channels=16, fc_out_channels=16))'
)
LOW = 'test_cfg=dict(score_thr=0.05, max_per_img=30)'

# Overrides of the quickstart's models: smaller ones.
MODELS = {
    'retinanet': f'{BACKBONE}, {NECK}, {DENSE}), {LOW}',
    'fcos': f'{BACKBONE}, {NECK}, {DENSE}, '
    f'norm_cfg=dict(type="GN", num_groups=4)), {LOW}',
    'faster_rcnn': f'{BACKBONE}, {NECK}, {REGIONS}, '
    'test_cfg=dict(rpn=dict(max_per_img=40), '
    'rcnn=dict(score_thr=0.05, max_per_img=30))',
    'resnet': 'backbone=dict(base_channels=8), head=dict(in_channels=64)',
}
LAST = ('retina_cls', 'conv_cls', 'rpn_cls', 'fc_cls')


class Case:
    """A small model with random weights in each of its three forms."""

    def __init__(self, name: str, folder: Path) -> None:
        # the quickstart's classifier inherits from MMPretrain's
        require('mmpretrain' if name == 'resnet' else 'mmdet')
        self.shape = (32, 32) if name == 'resnet' else SHAPE
        depth = '18' if name == 'resnet' else '_r18'
        base = QUICKSTART / f'{name}{depth}_digits.py'
        self.config = folder / 'config.py'
        self.config.write_text(
            f'_base_ = {str(base)!r}\n'
            "custom_imports = dict(imports=['mmgfp'])\n"
            "dataset = dict(data_root='nowhere/')\n"
            'test_dataloader = dict(dataset=dataset)\n'
            f'model = dict({MODELS[name]})\n'
        )
        config = load_config(self.config)
        model = build_model(config)
        run = demo_runner(self.shape, 2)
        vary_weights_(model, run)
        spread_scores(model, run)
        self.full = folder / 'full.pth'
        torch.save(dict(state_dict=model.state_dict()), self.full)

        groups = [g for g in demo_groups(model, self.shape) if not g.frozen]
        calls = record_calls(model, lambda: run(model), 2)
        pruner = pruner_of(
            *(model, groups, calls),
            floor=Floor(min_ratio=0.5),
            criterion=First(),
        )
        pruner.prune(lambda choices: False)
        structure = pruner.net.structure(str(self.config), self.shape)
        structure.save(folder / 'slim.json')
        self.slim = folder / 'slim.pth'
        torch.save(
            {'state_dict': model.state_dict(), KEY: structure.to_dict()},
            self.slim,
        )
        self.generated = folder / 'slim_finetune.py'
        self.generated.write_text(
            finetune_config(load_config(self.config), 'slim', {})
        )

    def pair(self, form: str) -> tuple[Path, Path]:
        return {
            'full': (self.config, self.full),
            'slim': (self.config, self.slim),
            'generated': (self.generated, self.slim),
        }[form]


def spread_scores(
    model: torch.nn.Module, run: Callable[[torch.nn.Module], object]
) -> None:
    """Random weights give scores that are almost equal, or all 1."""

    spread = {}

    def measure(module, args, output):
        # some are shared by levels; the first one counts
        spread.setdefault(module, output.std())

    handles = [
        module.register_forward_hook(measure)
        for name, module in model.named_modules()
        if name.rpartition('.')[2] in LAST
    ]
    with torch.no_grad():
        run(model)
        for module, std in spread.items():
            module.weight *= 2 / std
            module.bias.fill_(-2)
    for handle in handles:
        handle.remove()


def maker(folder: Callable[[str], Path]) -> Callable[[str], Case]:
    """Makes each model once.

    Args:
        folder (Callable): Makes a folder for the model of a name.
    """
    made: dict[str, Case] = {}

    def get(name: str) -> Case:
        if name not in made:
            made[name] = Case(name, folder(name))
        return made[name]

    return get
