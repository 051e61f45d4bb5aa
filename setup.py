"""Packaging of mmgfp; settings of the tools are in ``pyproject.toml``."""

from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent


def read_version() -> str:
    """Read the version without importing mmgfp, which would need torch."""
    scope: dict = {}
    exec((ROOT / 'mmgfp' / 'version.py').read_text(), scope)
    return scope['__version__']


def read_readme() -> str:
    readme = ROOT / 'README.md'
    return readme.read_text(encoding='utf-8') if readme.is_file() else ''


# Two families of distributions bring the same import names (mmengine, mmcv,
# mmdet, mmpretrain) and overwrite each other when both are installed. So
# mmengine, which the hook, the builder and the commands need, comes with the
# family the user picks: `detection` and `classification` are the maintained
# one, `openmmlab-*` the original one.
DETECTION = [
    'onedl-mmengine>=0.10.12',
    'onedl-mmcv>=2.3.6',
    'onedl-mmdetection>=3.5.1',
]
CLASSIFICATION = [
    'onedl-mmengine>=0.10.12',
    'onedl-mmcv>=2.3.6',
    'onedl-mmpretrain>=1.3.6',
]
SEGMENTATION = [
    'onedl-mmengine>=0.10.12',
    'onedl-mmcv>=2.3.6',
    'onedl-mmsegmentation>=1.4.2',
]

setup(
    name='mmgfp',
    version=read_version(),
    description='Group Fisher Pruning for MMDetection and MMPretrain',
    long_description=read_readme(),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    classifiers=[
        'Operating System :: POSIX :: Linux',
        'Programming Language :: Python :: 3.11',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
    ],
    packages=find_packages(include=['mmgfp', 'mmgfp.*']),
    # MMEngine's place for the configs that a package brings
    package_data={
        'mmgfp': ['py.typed', 'report/*.html', '.mim/configs/*/*.py']
    },
    entry_points={'console_scripts': ['mmgfp = mmgfp.commands.main:main']},
    python_requires='>=3.10',
    install_requires=[
        'torch>=2.0.1',
        'numpy',
        'scipy',
        'matplotlib',
        'rich',
        'jinja2',
        'markupsafe',
    ],
    extras_require={
        'detection': DETECTION,
        'classification': CLASSIFICATION,
        'segmentation': SEGMENTATION,
        'openmmlab-detection': [
            'mmengine>=0.10.7',
            'mmcv>=2.0.1',
            'mmdet>=3.3.0',
        ],
        'openmmlab-classification': [
            'mmengine>=0.10.7',
            'mmcv>=2.1.0',
            'mmpretrain>=1.2.0',
        ],
        # the name before MMPretrain, which takes no later mmcv
        'openmmlab-mmcls': [
            'mmengine>=0.10.7',
            'mmcv>=2.0.1,<2.1.0',
            'mmcls>=1.0.0rc6',
        ],
        'openmmlab-pose': [
            'mmengine>=0.10.7',
            'mmcv>=2.0.1',
            'mmpose>=1.3.2',
        ],
        'openmmlab-yolo': [
            'mmengine>=0.10.7',
            'mmcv>=2.0.1,<2.1.0',
            'mmdet>=3.3.0',
            'mmyolo>=0.6.0',
        ],
        'openmmlab-segmentation': [
            'mmengine>=0.10.7',
            'mmcv>=2.0.1,<2.2.0',
            'mmsegmentation>=1.2.2',
            'ftfy',
            'regex',
        ],
        # models without any of these libraries
        'plain': ['timm', 'torchvision'],
        # the digit scenes are composed from scans that scikit-learn brings
        'quickstart': [*DETECTION, 'scikit-learn'],
        'export': ['onnx', 'onnxruntime'],
        'dev': [
            'codespell',
            'furo',
            'mypy',
            'myst-parser',
            'pre-commit',
            'pytest',
            'pytest-cov',
            'pytest-timeout',
            'pytest-xdist',
            'ruff',
            'scikit-learn',
            'sphinx>=8.2',
            'tensorboard',
        ],
    },
    zip_safe=False,
)
