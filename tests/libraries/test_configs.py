"""The shipped configs: they load, and say what the paper says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config
from mmengine.config.utils import (
    _get_external_cfg_base_path,
    _get_external_cfg_path,
)
from mmengine.registry import HOOKS
from mmengine.utils import get_installed_path
from processes import ROOT
from shipped import CONFIGS, all_configs, load, pruning_configs
from stack import CLASSIFICATION, require
from torch import nn

from mmgfp import PruningHook, SearchHook, Structure
from mmgfp.criteria.kfac import KFAC
from mmgfp.libraries.channel_groups import demo_groups, runnable
from mmgfp.libraries.config import load_config
from mmgfp.libraries.forward import demo_runner
from mmgfp.libraries.models import build_model
from mmgfp.libraries.pipeline import input_shape
from mmgfp.slimming.positions import axis_sizes
from mmgfp.slimming.structure import Axis
from mmgfp.utils.trees import tree_leaves

# Per model: data set, architecture, base, interval, target, learning rate of
# pruning and of fine-tuning, samples per GPU, epochs. The learning rates are
# those of 8 GPUs.
PAPER = {
    'retinanet': (
        'coco',
        'RetinaNet',
        'mmdet::retinanet/retinanet_r50_fpn_1x_coco',
        *(10, 0.5, 0.002, 0.01, 2, 12),
    ),
    'fcos': (
        'coco',
        'FCOS',
        'mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco',
        *(10, 0.5, 0.002, 0.01, 2, 12),
    ),
    'atss': (
        'coco',
        'ATSS',
        'mmdet::atss/atss_r50_fpn_1x_coco',
        *(10, 0.5, 0.002, 0.01, 2, 12),
    ),
    'fsaf': (
        'coco',
        'FSAF',
        'mmdet::fsaf/fsaf_r50_fpn_1x_coco',
        *(10, 0.5, 0.002, 0.01, 2, 12),
    ),
    'paa': (
        'coco',
        'PAA',
        'mmdet::paa/paa_r50_fpn_1x_coco',
        *(10, 0.5, 0.002, 0.01, 2, 12),
    ),
    'faster_rcnn': (
        'coco',
        'FasterRCNN',
        'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco',
        *(10, 0.5, 0.002, 0.01, 2, 12),
    ),
    'mask_rcnn': (
        'coco',
        'MaskRCNN',
        'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco',
        *(10, 0.5, 0.002, 0.01, 2, 12),
    ),
    'resnet50': (
        'imagenet',
        'ImageClassifier',
        'mmpretrain::resnet/resnet50_8xb32_in1k',
        *(25, 0.5, 0.004, 0.1, 32, 100),
    ),
    'resnext50': (
        'imagenet',
        'ImageClassifier',
        'mmpretrain::resnext/resnext50-32x4d_8xb32_in1k',
        *(25, 0.5, 0.004, 0.1, 32, 100),
    ),
    'mobilenetv2': (
        'imagenet',
        'ImageClassifier',
        'mmpretrain::mobilenet_v2/mobilenet-v2_8xb32_in1k',
        *(25, 0.65, 0.0050625, 0.045, 32, 300),
    ),
    'regnetx': (
        'imagenet',
        'ImageClassifier',
        'mmpretrain::regnet/regnetx-3.2gf_8xb64_in1k',
        *(25, 0.5, 0.004, 0.1, 32, 100),
    ),
    # the paper has no segmentor; the length is in iterations
    'fcn': (
        'cityscapes',
        'EncoderDecoder',
        'mmseg::fcn/fcn_r18-d8_4xb2-80k_cityscapes-512x1024',
        *(10, 0.5, 0.002, 0.01, 2, 80000),
    ),
}
FIELDS = (
    'dataset',
    'architecture',
    'base',
    'interval',
    'target',
    'lr',
    'finetune_lr',
    'batch',
    'epochs',
)

OF_NAP = ['retinanet', 'fcos', 'faster_rcnn', 'resnet50']
OF_SEARCHES = [*OF_NAP, 'fcn']
VARIANTS = pytest.mark.parametrize('normalize_by', ['acts', 'flops'])
MODELS = pytest.mark.parametrize('model', PAPER)


def paper(model: str) -> dict:
    return dict(zip(FIELDS, PAPER[model], strict=True))


def load_shipped(phase: str, model: str, normalize_by: str) -> Config:
    dataset = paper(model)['dataset']
    name = f'{phase}_{model}_{normalize_by}_{dataset}.py'
    return load(CONFIGS / model / name)


def pruning_hooks(config: Config) -> list[dict]:
    kind = 'mmgfp.PruningHook'
    return [
        hook for hook in config.get('custom_hooks', []) if hook['type'] == kind
    ]


@pytest.mark.parametrize(
    'path', all_configs(), ids=lambda path: str(path.relative_to(CONFIGS))
)
def test_loads(path):
    config = load(path)
    assert config.filename == str(path)
    assert 'type' in config.model
    for hook in config.get('custom_hooks', ()):
        if hook['type'].startswith('mmgfp.'):
            HOOKS.build(hook)  # its arguments are valid


def test_every_model_has_its_four_configs():
    expected = {
        f'{model}/{phase}_{model}_{normalize_by}_{paper(model)["dataset"]}.py'
        for model in PAPER
        for phase in ('prune', 'finetune')
        for normalize_by in ('acts', 'flops')
    } | {
        f'{model}/{phase}_{model}_nap_{paper(model)["dataset"]}.py'
        for model in OF_NAP
        for phase in ('prune', 'finetune')
    }
    found = {
        path.relative_to(CONFIGS).as_posix()
        for path in all_configs()
        if path.name.startswith(('prune_', 'finetune_'))
        and path.parent.name != 'quickstart'
    }
    assert found == expected


@pytest.mark.parametrize('model', ['retinanet', 'fcos', 'resnet50'])
def test_fisher_becomes_nap_by_one_word(model, tmp_path):
    dataset = paper(model)['dataset']
    path = CONFIGS / model / f'prune_{model}_acts_{dataset}.py'
    text = path.read_text()
    assert text.count("'Fisher'") == 1
    changed = tmp_path / path.name
    changed.write_text(text.replace("'Fisher'", "'KFAC'"))
    (hook,) = load(changed).custom_hooks
    assert isinstance(HOOKS.build(hook).criterion, KFAC)


@pytest.mark.parametrize('model', OF_NAP)
def test_nap_differs_by_its_criterion_and_pace(model):
    dataset = paper(model)['dataset']
    nap = load(CONFIGS / model / f'prune_{model}_nap_{dataset}.py')
    acts = load_shipped('prune', model, 'acts')
    (found,), (expected,) = nap.custom_hooks, acts.custom_hooks
    assert found.pop('criterion') == dict(type='KFAC', batches=100)
    assert expected.pop('criterion') == dict(type='Fisher')
    assert found.pop('channels_per_step') == 'auto'
    assert found.pop('normalize_by') == 'none'
    # a step after each epoch, and ten or seven of them
    images = dict(coco=117_266, imagenet=1_281_167)[dataset]
    steps = -(-images // (8 * paper(model)['batch']))
    assert abs(found.pop('interval') - steps) <= 1
    epochs = paper(model)['epochs']
    assert 7 <= found.pop('prune_share', 0.6) * epochs <= 10.001
    for name in ('interval', 'normalize_by'):
        expected.pop(name)
    assert found == expected
    for name in ('load_from', 'optim_wrapper', 'model'):
        assert nap[name] == acts[name]


@pytest.mark.parametrize('model', OF_SEARCHES)
@pytest.mark.parametrize('search', ['DCSS', 'ITPruner', 'Knapsack'])
def test_searches_differ_by_their_hook(model, search):
    dataset = paper(model)['dataset']
    name = f'search_{model}_{search.lower()}_{dataset}.py'
    config, acts = (
        load(CONFIGS / model / name),
        load_shipped('prune', model, 'acts'),
    )
    (hook,) = config.custom_hooks
    assert hook['search']['type'] == search
    assert hook['target'] == acts.pruning.target
    assert hook['finetune'] == acts.pruning.finetune
    assert isinstance(HOOKS.build(dict(hook)), SearchHook)
    for key in ('load_from', 'optim_wrapper', 'model', 'train_dataloader'):
        assert config[key] == acts[key]


@MODELS
def test_configs_stay_short(model):
    for path in (CONFIGS / model).glob('*.py'):
        lines = path.read_text().splitlines()
        assert len(lines) <= (4 if '_flops_' in path.name else 30), path


@MODELS
@VARIANTS
def test_prune(model, normalize_by):
    expected = paper(model)
    base = load(expected['base'])
    config = load_shipped('prune', model, normalize_by)

    (hook,) = pruning_hooks(config)
    assert hook['normalize_by'] == normalize_by
    assert hook['target'] == dict(flops=expected['target'])
    assert hook['interval'] == expected['interval']
    assert 'channels_per_step' not in hook  # one, the default
    finetune = hook['finetune']['optim_wrapper']['optimizer']['lr']
    assert finetune == expected['finetune_lr']
    assert isinstance(HOOKS.build(dict(hook)), PruningHook)

    assert config.model.type == base.model.type == expected['architecture']
    assert config.optim_wrapper.optimizer.lr == pytest.approx(expected['lr'])
    assert config.load_from.startswith('checkpoints/')
    check_shared(config, base, expected)


@pytest.mark.parametrize(
    ('model', 'normalize_by'),
    [
        *((model, kind) for model in PAPER for kind in ('acts', 'flops')),
        *((model, 'nap') for model in OF_NAP),
    ],
)
def test_finetune(model, normalize_by):
    expected = paper(model)
    base = load(expected['base'])
    config = load_shipped('finetune', model, normalize_by)

    assert not pruning_hooks(config)
    assert config.model.type == 'mmgfp.PrunedModel'
    assert config.model.architecture == expected['architecture']
    work_dir = f'work_dirs/prune_{model}_{normalize_by}_{expected["dataset"]}'
    pruned = f'{work_dir}/flops_{expected["target"]:.2f}'
    assert config.load_from == f'{pruned}.pth'
    assert config.model.structure == f'{pruned}.json'
    assert config.optim_wrapper.optimizer.lr == expected['finetune_lr']
    # the work dir is named after the config that prunes
    assert (CONFIGS / model / f'{Path(work_dir).name}.py').is_file()
    check_shared(config, base, expected)


def plain(value):
    """Drop the ``_scope_`` that inheriting from a package adds."""
    if isinstance(value, dict):
        return {
            key: plain(item) for key, item in value.items() if key != '_scope_'
        }
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def check_shared(config: Config, base: Config, expected: dict) -> None:
    """Check what pruning and fine-tuning have in common."""
    assert config.custom_imports['imports'] == ['mmgfp']
    assert config.default_scope == base.default_scope
    by = 'max_iters' if expected['dataset'] == 'cityscapes' else 'max_epochs'
    assert config.train_cfg[by] == expected['epochs']
    for same in (
        'param_scheduler',
        'val_dataloader',
        'test_evaluator',
        'train_cfg',
    ):
        assert plain(config[same]) == plain(base[same])
    assert config.train_dataloader.batch_size == expected['batch']
    if by == 'max_epochs':
        assert config.auto_scale_lr.base_batch_size == 8 * expected['batch']
    data, base_data = (
        settings.train_dataloader.dataset for settings in (config, base)
    )
    assert plain(data) == plain(base_data)
    decay, base_decay = (
        settings.optim_wrapper.optimizer.weight_decay
        for settings in (config, base)
    )
    assert decay == base_decay

    backbone = config.model.backbone
    if expected['dataset'] == 'coco':
        assert backbone.frozen_stages == -1
        assert backbone.norm_eval is True
        # nothing is downloaded: load_from brings the whole detector
        assert backbone.init_cfg is None
    elif expected['dataset'] == 'cityscapes':
        assert config.model.pretrained is None
    else:
        assert not backbone.get('norm_eval', False)
    if expected['architecture'] == 'FSAF':
        assert config.optim_wrapper.clip_grad.max_norm == 10
    # the rest of the base's custom hooks stay
    others = [
        hook
        for hook in config.get('custom_hooks', [])
        if hook['type'] != 'mmgfp.PruningHook'
    ]
    assert plain(others) == plain(base.get('custom_hooks', []))


def traced(path: Path):
    """Model and proven groups of a pruning config."""
    config = load(path)
    model = build_model(config)
    return model, demo_groups(model, input_shape(config))


def halved(model, groups) -> Structure:
    """A structure that keeps every other unit of every prunable group."""
    prunable = [group for group in groups if not group.frozen]
    sizes = axis_sizes(model, prunable)
    gone: dict[tuple[str, int], set[int]] = {}
    for group in prunable:
        for member in group.members:
            lost = gone.setdefault((member.tensor, member.axis), set())
            lost.update(member.index[1::2].ravel().tolist())
    axes = {}
    for (name, axis), lost in gone.items():
        size = sizes[name, axis]
        axes[name, axis] = Axis(
            size, np.array([i for i in range(size) if i not in lost])
        )
    cost = dict(flops=1.0, params=1.0, acts=1.0)
    return Structure(
        axes, type(model).__name__, cost_before=cost, cost_after=cost
    )


@pytest.mark.parametrize('path', pruning_configs(), ids=lambda path: path.stem)
def test_configs_are_built_and_traced(path, tmp_path):
    model, groups = traced(path)
    check_traced(model, groups)
    if path.parent.name != 'quickstart':  # its fine-tuning config is generated
        finetuning = path.with_name(path.name.replace('prune', 'finetune'))
        check_slim_build(finetuning, model, groups, tmp_path)


def check_traced(model, groups) -> None:
    frozen = {group.frozen for group in groups if group.frozen}
    assert not any('self-check' in reason for reason in frozen), frozen
    assert not any('no rule' in reason for reason in frozen), frozen
    convolutions = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d)
    ]
    prunable = {
        layer
        for group in groups
        if not group.frozen
        for layer in group.producers
    }
    stuck = [name for name in convolutions if name not in prunable]
    # only the last layers of a head have outputs that nothing may take away
    assert len(stuck) <= 3, stuck
    assert all('head' in name for name in stuck), stuck


def check_slim_build(path: Path, full, groups, tmp_path: Path) -> None:
    structure = halved(full, groups)
    structure.save(tmp_path / 'half.json')
    config = load_config(path)
    config.model.structure = str(tmp_path / 'half.json')
    slim = build_model(config)
    assert type(slim) is type(full)
    assert slim.state_dict().keys() == full.state_dict().keys()
    sizes = axis_sizes(slim, groups)
    for key, entry in structure.axes.items():
        assert sizes[key] == len(entry.keep)
    shape, _ = next(runnable(slim, input_shape(config)))
    outputs = demo_runner(shape)(slim)
    expected = demo_runner(shape)(full)
    assert [t.shape for t in tree_leaves(outputs)] == [
        t.shape for t in tree_leaves(expected)
    ]


def test_short_form_is_the_file_of_the_package():
    config = load_config('mmdet::retinanet/retinanet_r50_fpn_1x_coco')
    path = Path(config.filename)
    assert path.name == 'retinanet_r50_fpn_1x_coco.py'
    assert path.parts[-5:-2] == ('mmdet', '.mim', 'configs')
    dotted = load_config(f'{CLASSIFICATION}::regnet/regnetx-3.2gf_8xb64_in1k')
    assert dotted.model.backbone.arch == 'regnetx_3.2gf'


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('mmdet::retinanet/retinanet_r50_1x_coco.py', 'retinanet_r50_fpn_1x'),
        ('mmwhat::a/b.py', "'mmwhat', which is not installed"),
        ('::', "'', which is not installed"),
        ('configs/fcos/prune_fcos_act_coco.py', 'prune_fcos_acts_coco.py'),
        ('config/fcos/prune_fcos_acts_coco.py', 'configs/fcos/prune_fcos'),
        ('configs', "no config 'configs'"),
    ],
)
def test_unknown_config_is_named(name, message, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(FileNotFoundError) as error:
        load_config(name)
    assert message in str(error.value)
    assert name.partition('::')[2] in str(error.value)


@pytest.mark.parametrize(
    'name',
    [
        'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',
        'mmdet::_base_/models/faster-rcnn_r50_fpn.py',
        f'{CLASSIFICATION}::resnet/resnet18_8xb32_in1k.py',
    ],
)
def test_bases_are_those_that_mmengine_finds(name, monkeypatch):
    package, _, config = name.partition('::')
    folder = get_installed_path(package)
    try:
        expected = _get_external_cfg_path(folder, config)
    except ValueError:  # not in a metafile
        expected = _get_external_cfg_base_path(folder, config)
    with monkeypatch.context() as patch:
        patch.setattr('yaml.load', None)  # no metafile is read
        found, scope = Config._get_cfg_path(name, 'config.py')
    assert Path(found).samefile(expected) and scope == package


def test_bases_that_are_not_installed(tmp_path):
    for name, words in (
        ('mmnothing::a.py', 'mmnothing'),
        ('mmdet::retinanet/none.py', 'none.py'),
    ):
        path = tmp_path / 'config.py'
        path.write_text(f"_base_ = '{name}'")
        with pytest.raises(ValueError, match=words):
            load_config(path)


def test_own_configs_are_bases_of_others(tmp_path):
    """Types in them are looked up where the config says, not in mmgfp."""
    require('mmdet')
    mine = tmp_path / 'mine.py'
    name = 'quickstart/prune_retinanet_r18_digits.py'
    mine.write_text(f"_base_ = 'mmgfp::{name}'\nmodel = dict(neck=dict(a=1))")
    config = load_config(mine)
    assert '_scope_' not in str(config._cfg_dict.model.backbone)
    shipped = load_config(f'mmgfp::{name}')
    assert Path(shipped.filename).resolve() == CONFIGS / name
    assert config.custom_hooks == shipped.custom_hooks
    del config.model.neck['a']
    assert config.model == shipped.model
    mine.write_text("_base_ = 'mmgfp::quickstart/prune_retinet_r18.py'\n")
    with pytest.raises(ValueError, match=r'mmgfp has no config .* mean'):
        load_config(mine)
