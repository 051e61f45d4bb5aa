"""The structure file: written whole, read with care."""

from __future__ import annotations

import copy
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from nets import Chain, Residual, run
from nets_widths import Hierarchical
from oracles import choose_units, kept, outputs
from torch import nn

from mmgfp.slimming.element_masks import Density
from mmgfp.slimming.structure import KEY, Axis, Structure
from mmgfp.slimming.surgery import cut_model, named_tensors
from mmgfp.tracing.finder import find_groups
from mmgfp.version import __version__


def pruned(seed: int = 0) -> tuple[nn.Module, nn.Module, Structure]:
    """A full net, its slim copy and the structure between them."""
    torch.manual_seed(seed)
    model = Residual().eval()
    groups = find_groups(model, run, images=2)
    keep = kept(model, groups, choose_units(groups, seed=seed))
    slim = copy.deepcopy(model)
    cut_model(slim, keep)
    tensors = named_tensors(model)
    axes = {
        (name, axis): Axis(tensors[name].shape[axis], stay)
        for (name, axis), stay in keep.items()
    }
    structure = Structure(
        axes,
        'Residual',
        'residual.py',
        (16, 16),
        {'flops': 100.0, 'params': 50.0, 'acts': 10.0},
        {'flops': 40.0, 'params': 20.0, 'acts': 5.0},
    )
    return model, slim, structure


@pytest.fixture
def data() -> dict:
    return pruned()[2].to_dict()


def same(a: Structure, b: Structure) -> None:
    assert a.axes.keys() == b.axes.keys()
    for key, axis in a.axes.items():
        assert axis.size == b.axes[key].size
        assert axis.keep.tolist() == b.axes[key].keep.tolist()
    for field in (
        *('architecture', 'source', 'input_shape'),
        *('cost_before', 'cost_after'),
    ):
        assert getattr(a, field) == getattr(b, field)


# -- files of earlier versions -----------------------------------------------


@pytest.mark.parametrize(
    ('kind', 'version'), [(Residual, 1), (Hierarchical, 2)]
)
@pytest.mark.parametrize('ending', ['json', 'pth'])
def test_files_of_an_earlier_version(kind, version, ending):
    """mmgfp 0.1.0 wrote them, with the outputs of its slim network."""
    file = Path(__file__).parents[1] / 'old' / kind.__name__.lower()
    checkpoint = torch.load(file.with_suffix('.pth'), weights_only=True)
    written = checkpoint[KEY]
    assert written['mmgfp'] == '0.1.0' and written['version'] == version
    structure = Structure.load(file.with_suffix(f'.{ending}'))
    assert structure.to_dict()['tensors'] == written['tensors']
    model = kind().eval()
    structure.apply(model)
    model.load_state_dict(checkpoint['state_dict'])
    for found, expected in zip(
        outputs(model, run), checkpoint['outputs'], strict=True
    ):
        torch.testing.assert_close(found, expected)


# -- round trips -------------------------------------------------------------


def test_json_round_trip(tmp_path):
    model, slim, structure = pruned()
    path = tmp_path / 'flops_0.40.json'
    structure.save(path)
    assert os.listdir(tmp_path) == [path.name]
    loaded = Structure.load(path)
    same(loaded, structure)
    rebuilt = copy.deepcopy(model)
    loaded.apply(rebuilt)
    assert all(
        torch.equal(a, b)
        for a, b in zip(outputs(rebuilt, run), outputs(slim, run))
    )
    assert loaded.ratio('flops') == 0.4
    assert loaded.ratio('acts') == 0.5


def test_checkpoint_round_trip(tmp_path):
    _, slim, structure = pruned()
    path = tmp_path / 'epoch_1.pth'
    torch.save(
        {'state_dict': slim.state_dict(), KEY: structure.to_dict()}, path
    )
    same(Structure.load(path), structure)


def test_json_is_plain_and_says_what_it_is(data):
    read = json.loads(json.dumps(data))
    assert read == data
    assert read['format'] == 'mmgfp-structure'
    assert read['version'] == 1
    assert read['mmgfp'] == __version__
    assert list(read['tensors']) == sorted(read['tensors'])


@pytest.mark.parametrize(
    ('kept_positions', 'runs'),
    [
        ([0], [[0, 1]]),
        ([0, 1, 2, 3], [[0, 4]]),
        ([1, 2, 5, 7, 8, 9], [[1, 3], [5, 6], [7, 10]]),
        ([0, 2, 4], [[0, 1], [2, 3], [4, 5]]),
        ([9], [[9, 10]]),
    ],
)
def test_runs(kept_positions, runs):
    structure = Structure(
        {('a.weight', 0): Axis(10, np.array(kept_positions))}
    )
    plain = structure.to_dict()
    assert plain['tensors'] == {'a.weight': {'0': {'size': 10, 'keep': runs}}}
    (axis,) = Structure.from_dict(plain).axes.values()
    assert axis.keep.tolist() == kept_positions
    assert axis.size == 10


def test_compose_is_indexing_twice():
    rng = np.random.default_rng(0)
    full = rng.normal(size=(20, 6))
    first = np.sort(rng.permutation(20)[:12])
    second = np.sort(rng.permutation(12)[:5])
    columns = np.array([1, 4])
    structure = Structure({('w', 0): Axis(20, first)})
    axes = structure.compose(
        {('w', 0): second, ('w', 1): columns}, {('w', 0): 12, ('w', 1): 6}
    )
    assert axes['w', 0].size == 20
    assert axes['w', 1].size == 6
    direct = full[axes['w', 0].keep][:, axes['w', 1].keep]
    assert np.array_equal(direct, full[first][second][:, columns])
    # the one it came from is as it was
    assert structure.axes['w', 0].keep.tolist() == first.tolist()
    assert ('w', 1) not in structure.axes


def test_composed_structure_rebuilds_the_twice_pruned_net():
    model, slim, structure = pruned()
    groups = find_groups(slim, run, images=2)
    keep = kept(slim, groups, choose_units(groups, seed=7))
    tensors = named_tensors(slim)
    sizes = {key: tensors[key[0]].shape[key[1]] for key in keep}
    again = Structure(structure.compose(keep, sizes), 'Residual')
    cut_model(slim, keep)
    again.apply(model)
    assert all(
        torch.equal(a, b)
        for a, b in zip(outputs(model, run), outputs(slim, run))
    )


# -- bad files ---------------------------------------------------------------


def test_interrupted_writing_leaves_no_final_name(tmp_path, monkeypatch):
    structure = pruned()[2]
    path = tmp_path / 'flops_0.40.json'

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, 'replace', interrupt)
    with pytest.raises(KeyboardInterrupt):
        structure.save(path)
    assert not path.exists()


def test_interrupted_writing_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / 'flops_0.40.json'
    path.write_text('old')

    def full(*_, **__):
        raise OSError('No space left on device')

    monkeypatch.setattr('json.dumps', full)
    with pytest.raises(OSError, match='No space left'):
        pruned()[2].save(path)
    assert path.read_text() == 'old'


def damage(data: dict, *path, value) -> dict:
    data = copy.deepcopy(data)
    place = data
    for key in path[:-1]:
        place = place[key]
    if value is None:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return data


def scores(**changes) -> dict:
    group = dict(dict(layers=['a'], scores=[1.0], removed=[1]), **changes)
    groups = dict(a=group)
    return dict(normalize_by='acts', step=1, iteration=1, groups=groups)


STEM = ('tensors', 'stem.weight', '0')

DAMAGED = {
    'no tensors': (('tensors',), None),
    'no cost': (('cost',), None),
    'list of tensors': (('tensors',), [1, 2]),
    'axis is a word': (('tensors', 'stem.weight'), {'first': {}}),
    'negative axis': (
        ('tensors', 'stem.weight'),
        {'-1': {'size': 8, 'keep': [[0, 4]]}},
    ),
    'no size': ((*STEM, 'size'), None),
    'size is a word': ((*STEM, 'size'), 'eight'),
    'size is fractional': ((*STEM, 'size'), 8.5),
    'nothing kept': ((*STEM, 'keep'), []),
    'empty run': ((*STEM, 'keep'), [[3, 3]]),
    'reversed run': ((*STEM, 'keep'), [[3, 1]]),
    'beyond the end': ((*STEM, 'keep'), [[0, 9]]),
    'far beyond the end': ((*STEM, 'keep'), [[0, 10**15]]),
    'negative': ((*STEM, 'keep'), [[-2, 2]]),
    'out of order': ((*STEM, 'keep'), [[4, 6], [0, 2]]),
    'overlapping': ((*STEM, 'keep'), [[0, 4], [3, 6]]),
    'fractional': ((*STEM, 'keep'), [[0.5, 4.5]]),
    'a run of three': ((*STEM, 'keep'), [[0, 2, 4]]),
    'positions in place of runs': ((*STEM, 'keep'), [0, 1, 2]),
    'shape is a word': (('input_shape',), 'large'),
    'cost is a word': (('cost', 'before'), {'flops': 'many'}),
    'cost of other things': (('cost', 'after'), {'flops': 1.0}),
    'cost that is infinite': (('cost', 'after', 'flops'), 1e308),
    'size is a truth value': ((*STEM, 'size'), True),
    'huge': (STEM, {'size': 10**12, 'keep': [[0, 10**12]]}),
    'huger': (STEM, {'size': 10**30, 'keep': [[0, 10**30]]}),
    'axis without end': (('tensors', 'stem.weight'), {'9' * 5000: {}}),
    'name that is a number': (('architecture',), 3),
    'list in a list': (('input_shape',), [[16], [16]]),
    'scores that are a word': (('scores',), 'all'),
    'steps that are fractional': (('scores',), scores(removed=[0.5])),
    'steps without end': (('scores',), scores(removed=[10**30])),
    'scores without end': (('scores',), scores(scores=[10**400])),
    'scores of text': (('scores',), scores(scores=['1'])),
    'scores in lists': (('scores',), scores(scores=[[1.0]])),
}


@pytest.mark.parametrize('name', DAMAGED)
def test_damaged(name, data, tmp_path):
    path, value = DAMAGED[name]
    file = tmp_path / 'damaged.json'
    file.write_text(json.dumps(damage(data, *path, value=value)))
    with pytest.raises(ValueError) as error:
        Structure.load(file)
    assert f'{file} is damaged' in str(error.value)


def test_truncated_json(data, tmp_path):
    file = tmp_path / 'half.json'
    text = json.dumps(data)
    for length in (0, 1, len(text) // 2, len(text) - 1):
        file.write_text(text[:length])
        with pytest.raises(ValueError, match='not valid JSON'):
            Structure.load(file)
    file.write_bytes(b'\xff\xfe\x00binary')
    with pytest.raises(ValueError, match='not valid JSON'):
        Structure.load(file)


@pytest.mark.parametrize(
    'text',
    [
        '[' * 100_000,
        '{"format": ' * 100_000,
        '{"format": NaN}',
        '{"format": Infinity}',
        f'{{"format": {"9" * 10_000}}}',
    ],
    ids=['lists', 'dicts', 'nan', 'infinity', 'digits'],
)
def test_json_that_is_made_to_do_harm(text, tmp_path):
    file = tmp_path / 'bad.json'
    file.write_text(text)
    with pytest.raises(ValueError, match='not valid JSON') as error:
        Structure.load(file)
    assert str(error.value).isprintable()


def test_words_of_a_structure_are_printable(data, tmp_path):
    data['architecture'] = 'a\nerror: all is well\x1b[2J'
    data['tensors']['x\ny'] = {'0': {'size': 1, 'keep': [[0, 1]]}}
    structure = Structure.from_dict(data)
    with pytest.raises(ValueError) as error:
        structure.check(nn.Linear(1, 1))
    assert str(error.value).isprintable()


@pytest.mark.parametrize('content', ['{}', '[]', '3', '{"format": "onnx"}'])
def test_not_a_structure(content, tmp_path):
    file = tmp_path / 'other.json'
    file.write_text(content)
    with pytest.raises(ValueError, match='not a structure of mmgfp') as error:
        Structure.load(file)
    assert 'mmgfp-structure' in str(error.value)


def test_other_version(data):
    data.update(version=4, mmgfp='7.1')
    with pytest.raises(ValueError) as error:
        Structure.from_dict(data, 'new.json')
    message = str(error.value)
    assert 'new.json has version 4' in message
    assert 'reads versions 1 to 3' in message
    assert "mmgfp '7.1'" in message


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'flops_0\.50\.json'):
        Structure.load(tmp_path / 'flops_0.50.json')
    with pytest.raises(FileNotFoundError):
        Structure.load(tmp_path)


def test_checkpoint_without_structure(tmp_path):
    path = tmp_path / 'baseline.pth'
    torch.save({'state_dict': Chain().state_dict()}, path)
    with pytest.raises(ValueError, match=r'baseline\.pth holds no structure'):
        Structure.load(path)


# -- single weights -----------------------------------------------------------


def sparse() -> tuple[nn.Module, nn.Module, Structure]:
    model, slim, structure = pruned()
    parameter = next(n for n, p in slim.named_parameters() if p.dim() == 4)
    weights = slim.get_parameter(parameter).numel()
    density = {parameter: Density(weights, weights // 3)}
    return model, slim, replace(structure, density=density)


def test_density_round_trip(tmp_path):
    model, _, structure = sparse()
    structure.save(tmp_path / 'density_0.33.json')
    loaded = Structure.load(tmp_path / 'density_0.33.json')
    same(loaded, structure)
    assert loaded.density == structure.density
    assert loaded.to_dict()['version'] == 3
    loaded.check(model)
    whole = replace(loaded, density={})
    assert whole.to_dict()['version'] == 1
    assert 'density' not in whole.to_dict()


def test_whether_a_model_is_slim():
    model, slim, structure = pruned()
    assert structure.fits_slim(slim)
    assert not structure.fits_slim(model)
    assert Structure({}).fits_slim(model)


@pytest.mark.parametrize(
    'entry',
    [
        3,
        {'weights': 4},
        {'weights': 4, 'left': 4},
        {'weights': 4, 'left': 5},
        {'weights': 4, 'left': -1},
        {'weights': 4.0, 'left': 1},
        {'weights': 4, 'left': True},
        {'weights': 4, 'left': 1, 'block': 4},
    ],
)
def test_density_of_unknown_kind_is_refused(data, entry):
    data['density'] = {'conv.weight': entry}
    with pytest.raises(ValueError, match='is damaged'):
        Structure.from_dict(data)


@pytest.mark.parametrize('name, words', [('', '7 weights'), ('x', 'none')])
def test_density_of_another_model(name, words):
    model, _, structure = sparse()
    (known,) = structure.density
    other = replace(structure, density={name or known: Density(7, 2)})
    with pytest.raises(ValueError, match='does not fit') as error:
        other.check(model)
    assert words in str(error.value)
    assert (name or known) in str(error.value)


# -- the wrong model ---------------------------------------------------------


def test_other_model():
    structure = pruned()[2]
    model = Chain()
    before = {k: v.shape for k, v in model.state_dict().items()}
    with pytest.raises(ValueError) as error:
        structure.apply(model)
    message = str(error.value)
    assert 'does not fit Chain' in message
    assert 'of Residual, residual.py' in message
    first = next(iter(structure.axes))[0]
    assert f'has no {first} (layer {first.rpartition(".")[0]})' in message
    assert {k: v.shape for k, v in model.state_dict().items()} == before


def test_first_layer_that_does_not_fit_is_named(tmp_path):
    """In the order of the model's layers, also from a file."""
    model, _, structure = pruned()
    structure.save(tmp_path / 'a.json')
    structure = Structure.load(tmp_path / 'a.json')
    model.b.conv1 = nn.Conv2d(8, 7, 3, padding=1, bias=False)
    model.b.bn = nn.BatchNorm2d(7)
    with pytest.raises(ValueError) as error:
        structure.apply(model)
    message = str(error.value)
    assert 'layer b.conv1 has b.conv1.weight of shape (7, 8, 3, 3)' in message
    assert 'expected 6 along axis 0' in message
    assert 'config that was pruned' in message
    assert model.stem.out_channels == 8  # untouched


def test_model_that_is_slim_already():
    _, slim, structure = pruned()
    with pytest.raises(ValueError, match='seems to be pruned already'):
        structure.apply(slim)


def test_axis_that_the_tensor_does_not_have():
    structure = Structure({('stem.bias', 3): Axis(8, np.array([0]))})
    with pytest.raises(ValueError, match=r'stem\.bias of shape \(8,\)'):
        structure.apply(Residual())
