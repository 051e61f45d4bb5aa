"""Which configs the sweep over all families of models takes.

A family is a folder of configs that MMDetection or MMPretrain brings. One
config stands for it: the smallest backbone that the names tell, then the
shortest name. Exceptions are in the tables here, each with its reason.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from mmgfp.libraries.config import config_folder

# MMClassification is MMPretrain before it was renamed: what the tables here
# say of the one holds for the other.
CLASSIFICATION = 'mmpretrain' if find_spec('mmpretrain') else 'mmcls'
LIBRARIES = ('mmdet', CLASSIFICATION)

_SIZES = (
    *('atto', 'femto', 'pico', 'nano', 'xxsmall', 'xsmall', 'tiny', 'small'),
    *('medium', 'base', 'large', 'xlarge', 'huge', 'giant'),
)
_LETTERS = dict(t='tiny', s='small', m='medium', b='base', l='large', x='huge')

# The rule would take a config without what the folder is about.
INSTEAD = {
    'mmdet/cascade_rpn': (
        'cascade-rpn_faster-rcnn_r50-caffe_fpn_1x_coco',
        'the proposals alone do not build with this release',
    ),
    'mmdet/dcn': (
        'faster-rcnn_r50-dconv-c3-c5_fpn_1x_coco',
        'deformable pooling has no kernel for CPUs',
    ),
    'mmdet/dcnv2': (
        'faster-rcnn_r50-mdconv-c3-c5_fpn_1x_coco',
        'deformable pooling has no kernel for CPUs',
    ),
    'mmdet/ddq': ('ddq-detr-4scale_r50_8xb2-12e_coco', 'no depth in Swin-L'),
    'mmdet/detectors': (
        'detectors_cascade-rcnn_r50_1x_coco',
        'it has both, recursive pyramid and switchable convolutions',
    ),
    'mmdet/fpg': (
        'faster-rcnn_r50_fpg-chn128_crop640-50e_coco',
        'the plain FPN is what FPG is compared with',
    ),
    'mmdet/gcnet': (
        'mask-rcnn_r50-gcb-r4-c3-c5_fpn_1x_coco',
        'the shortest name has no global context block',
    ),
    'mmdet/hrnet': (
        'faster-rcnn_hrnetv2p-w18-1x_coco',
        'one of the names has a ResNeXt',
    ),
    'mmdet/nas_fpn': (
        'retinanet_r50_nasfpn_crop640-50e_coco',
        'the plain FPN is what NAS-FPN is compared with',
    ),
    'mmdet/res2net': (
        'faster-rcnn_res2net-101_fpn_2x_coco',
        'HTC is a family of its own',
    ),
    'mmdet/sort': (
        'faster-rcnn_r50_fpn_8xb2-4e_mot17halftrain_test-mot17halfval',
        'the shortest name refers to a config that this release lacks',
    ),
    'mmdet/v3det': (
        'faster_rcnn_r50_fpn_8x4_sample1e-3_mstrain_v3det_2x',
        'no depth in Swin-B',
    ),
    'mmdet/vfnet': ('vfnet_r50_fpn_1x_coco', 'Res2Net is another family'),
    'mmpretrain/beit': (
        'benchmarks/beit-base-p16_8xb128-coslr-100e_in1k',
        'the others are for pretraining',
    ),
    'mmpretrain/beitv2': (
        'benchmarks/beit-base-p16_8xb128-coslr-100e_in1k',
        'the others are for pretraining',
    ),
    'mmpretrain/mixmim': (
        'benchmarks/mixmim-base_8xb128-coslr-100e_in1k',
        'the others are for pretraining',
    ),
    'mmpretrain/clip': (
        'vit-base-p32_pt-64xb64_in1k',
        'the others need a tokenizer from a hub',
    ),
    'mmpretrain/eva': ('eva-l-p14_headless', 'EVA-G has 1 G parameters'),
    'mmpretrain/replknet': (
        'replknet-31L_32xb64_in1k-384px',
        'the file that the smaller one is based on does not load',
    ),
    'mmpretrain/resnet': ('resnet18_8xb32_in1k', 'v1c is another network'),
    'mmpretrain/xcit': (
        'xcit-nano-12-p16_8xb128_in1k',
        'smaller patches are a larger network',
    ),
}

# Further architectures in the same folder, by name; the rule takes another.
FURTHER = {
    'mmdet/cascade_rcnn': {'mask': 'cascade-mask-rcnn_r50_fpn_1x_coco'},
    'mmdet/centernet': {
        'update': 'centernet-update_r18_fpn_8xb8-amp-lsj-200e_coco',
        'dcnv2': 'centernet_r18-dcnv2_8xb16-crop512-140e_coco',
    },
    'mmdet/dcn': {'dpool': 'faster-rcnn_r50_fpn_dpool_1x_coco'},
    'mmdet/dcnv2': {'mdpool': 'faster-rcnn_r50_fpn_mdpool_1x_coco'},
    'mmdet/deformable_detr': {
        'two-stage': 'deformable-detr-refine-twostage_r50_16xb2-50e_coco'
    },
    'mmdet/faster_rcnn': {
        'c4': 'faster-rcnn_r50-caffe_c4-1x_coco',
        'dc5': 'faster-rcnn_r50-caffe-dc5_1x_coco',
    },
    'mmdet/foveabox': {'align': 'fovea_r50_fpn_gn-head-align_4xb4-2x_coco'},
    'mmdet/guided_anchoring': {'retinanet': 'ga-retinanet_r50_fpn_1x_coco'},
    'mmdet/libra_rcnn': {'retinanet': 'libra-retinanet_r50_fpn_1x_coco'},
    'mmdet/nas_fcos': {
        'fcoshead': 'nas-fcos_r50-caffe_fpn_fcoshead-gn-head_4xb4-1x_coco'
    },
    'mmdet/pvt': {'v1': 'retinanet_pvt-t_fpn_1x_coco'},
    'mmdet/rtmdet': {'ins': 'rtmdet-ins_tiny_8xb32-300e_coco'},
    'mmdet/sabl': {'faster-rcnn': 'sabl-faster-rcnn_r50_fpn_1x_coco'},
    'mmdet/solo': {
        'decoupled': 'decoupled-solo_r50_fpn_1x_coco',
        'light': 'decoupled-solo-light_r50_fpn_3x_coco',
    },
    'mmdet/ssd': {'vgg': 'ssd300_coco'},
    'mmdet/yolo': {'darknet': 'yolov3_d53_8xb8-320-273e_coco'},
    'mmpretrain/cspnet': {
        'cspdarknet': 'cspdarknet50_8xb32_in1k',
        'cspresnext': 'cspresnext50_8xb32_in1k',
    },
    'mmpretrain/deit': {'distilled': 'deit-tiny-distilled_4xb256_in1k'},
    'mmpretrain/efficientnet': {'edge': 'efficientnet-es_8xb32-01norm_in1k'},
    'mmpretrain/hornet': {'gf': 'hornet-tiny-gf_8xb128_in1k'},
    'mmpretrain/mae': {
        'hivit': 'mae_hivit-base-p16_8xb512-amp-coslr-400e_in1k'
    },
    'mmpretrain/mobilenet_v3': {'large': 'mobilenet-v3-large_8xb128_in1k'},
    'mmpretrain/mocov3': {
        'vit': 'mocov3_vit-small-p16_16xb256-amp-coslr-300e_in1k'
    },
    'mmpretrain/repvgg': {'d2se': 'repvgg-D2se_8xb32_in1k'},
    'mmpretrain/resnet': {
        'cifar': 'resnet18_8xb16_cifar10',
        'v1c': 'resnetv1c50_8xb32_in1k',
        'v1d': 'resnetv1d50_8xb32_in1k',
    },
    'mmpretrain/seresnet': {'seresnext': 'seresnext50-32x4d_8xb32_in1k'},
    'mmpretrain/spark': {
        'convnext': 'spark_sparse-convnextv2-tiny_16xb256-amp-coslr-800e_in1k'
    },
    'mmpretrain/twins': {'pcpvt': 'twins-pcpvt-small_8xb128_in1k'},
    'mmpretrain/vgg': {'bn': 'vgg11bn_8xb32_in1k'},
    'mmpretrain/vig': {'pyramid': 'pvig-tiny_8xb128_in1k'},
}

_TEXT = 'reads text: needs a tokenizer and a language model from a hub'
_TARGETS = 'loads what its training imitates from the network when built'
_VIDEO = 'follows objects in videos, on top of a detector of another family'
_VIEWS = (
    'pretrains the network of another family, on several views or masks of '
    'an image'
)
_MASK_RCNN = 'the network of mmdet/mask_rcnn, another data set or recipe'
_RETINANET = 'the network of mmdet/retinanet, another data set or loss'
_FASTER_RCNN = 'the network of mmdet/faster_rcnn:c4, another data set'
_NO_MODEL = 'holds settings that other configs share, no model'

# Folders that are not run.
LEFT_OUT = {
    'mmdet/albu_example': _MASK_RCNN,
    'mmdet/bytetrack': _VIDEO,
    'mmdet/cityscapes': _MASK_RCNN,
    'mmdet/clrnet': 'finds lanes: its raw forward fails in this release, and '
    'its data are no boxes',
    'mmdet/common': _NO_MODEL,
    'mmdet/deepfashion': _MASK_RCNN,
    'mmdet/deepsort': _VIDEO,
    'mmdet/ghm': _RETINANET,
    'mmdet/glip': _TEXT,
    'mmdet/grounding_dino': _TEXT,
    'mmdet/instaboost': _MASK_RCNN,
    'mmdet/lvis': _MASK_RCNN,
    'mmdet/mask2former_vis': _VIDEO,
    'mmdet/masktrack_rcnn': _VIDEO,
    'mmdet/misc': 'wraps the networks of Detectron2, a package of its own',
    'mmdet/mm_grounding_dino': _TEXT,
    'mmdet/objects365': _RETINANET,
    'mmdet/ocsort': _VIDEO,
    'mmdet/openimages': _RETINANET,
    'mmdet/pascal_voc': _FASTER_RCNN,
    'mmdet/qdtrack': _VIDEO,
    'mmdet/resnet_strikes_back': _MASK_RCNN,
    'mmdet/selfsup_pretrain': _MASK_RCNN,
    'mmdet/simple_copy_paste': 'the network of mmdet/strong_baselines',
    'mmdet/soft_teacher': 'teaches the network of mmdet/faster_rcnn:c4 on '
    'images without boxes; prune that network by its own config',
    'mmdet/strongsort': _VIDEO,
    'mmdet/wider_face': _RETINANET,
    'mmpretrain/barlowtwins': _VIEWS,
    'mmpretrain/blip': _TEXT,
    'mmpretrain/blip2': _TEXT,
    'mmpretrain/byol': _VIEWS,
    'mmpretrain/cae': _VIEWS,
    'mmpretrain/chinese_clip': _TEXT,
    'mmpretrain/densecl': _VIEWS,
    'mmpretrain/flamingo': _TEXT,
    'mmpretrain/itpn': _VIEWS,
    'mmpretrain/llava': _TEXT,
    'mmpretrain/mae': _VIEWS,
    'mmpretrain/maskfeat': _VIEWS,
    'mmpretrain/mff': _VIEWS,
    'mmpretrain/milan': _TARGETS,
    'mmpretrain/minigpt4': _TEXT,
    'mmpretrain/mocov2': _VIEWS,
    'mmpretrain/mocov3': _VIEWS,
    'mmpretrain/ofa': _TEXT,
    'mmpretrain/otter': _TEXT,
    'mmpretrain/simclr': _VIEWS,
    'mmpretrain/simmim': _VIEWS,
    'mmpretrain/simsiam': _VIEWS,
    'mmpretrain/spark': _VIEWS,
    'mmpretrain/swav': _VIEWS,
}


@dataclass(frozen=True)
class Family:
    """One config that is run.

    Attributes:
        name (str): 'mmdet/faster_rcnn', or 'mmdet/faster_rcnn:c4' for a
            further architecture in that folder.
        config (str): Short form of the config.
    """

    name: str
    config: str

    @property
    def file_name(self) -> str:
        """The name as a part of file names."""
        return self.name.replace('/', '-').replace(':', '-')


def all_families(libraries: Sequence[str] = LIBRARIES) -> list[Family]:
    """What is run, by library and name; not what :data:`LEFT_OUT` names."""
    families = []
    for library in libraries:
        for folder in _folders(library):
            name = f'{library}/{folder.name}'
            if _listed(name) not in LEFT_OUT:
                families += _in_folder(name, folder)
    # further architectures last: a sweep may be interrupted
    return sorted(families, key=lambda family: ':' in family.name)


def left_out(libraries: Sequence[str] = LIBRARIES) -> dict[str, str]:
    """Folders that exist and are not run: name -> reason."""
    names = [
        f'{library}/{folder.name}'
        for library in libraries
        for folder in _folders(library)
    ]
    return {n: LEFT_OUT[_listed(n)] for n in names if _listed(n) in LEFT_OUT}


def _listed(name: str) -> str:
    """Name of a folder in the tables."""
    return name.replace('mmcls/', 'mmpretrain/')


def _folders(library: str) -> Iterator[Path]:
    for folder in sorted(config_folder(library).iterdir()):
        if folder.is_dir() and not folder.name.startswith('_'):
            yield folder


def _in_folder(name: str, folder: Path) -> list[Family]:
    stems = [file.stem for file in sorted(folder.glob('*.py'))]
    further = FURTHER.get(_listed(name), {})
    instead = INSTEAD.get(_listed(name), ('',))[0]
    if instead and (folder / f'{instead}.py').exists():
        stems.append(instead)
    else:
        instead = smallest([s for s in stems if s not in further.values()])
    chosen = {'': instead}
    chosen.update(further)
    library = name.partition('/')[0]
    return [
        Family(
            f'{name}:{variant}' if variant else name,
            f'{library}::{folder.name}/{stem}.py',
        )
        for variant, stem in chosen.items()
        if stem in stems  # another release may lack it
    ]


def smallest(stems: Sequence[str]) -> str:
    """The config of the smallest network, as far as names tell.

    Args:
        stems (Sequence[str]): Names of configs, without suffix.
    """
    models = [
        stem
        for stem in stems
        if not stem.startswith('_') and not stem.endswith('_tta')
    ]
    return min(models, key=_size, default='')


def _size(stem: str) -> tuple:
    """Sorts names: word for the size, depth and the like, length, name."""
    # fields that begin with a digit tell the schedule, as 8xb32 and 1x do
    fields = [f for f in stem.split('_') if not re.match(r'\d+\D|ms\b', f)]
    words = [w for f in fields for w in re.split(r'[-.]', f)]
    sizes = [_LETTERS.get(word, word) for word in words]
    ranks = [_SIZES.index(size) for size in sizes if size in _SIZES]
    numbers = [
        float(value) / (1000 if unit.lower() == 'mf' else 1)
        for value, unit in re.findall(
            r'(\d+(?:\.\d+)?)([mM][fF])?', '_'.join(fields)
        )
    ]
    return (ranks[:1], numbers, len(stem), stem)
