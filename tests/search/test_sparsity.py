"""Which weights go, against every possible choice."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from mmgfp.search.schedule import left_after
from mmgfp.search.sparsity import Shapes, choose


def layers(*shapes, seed=0, ties=False) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    draw = (lambda s: rng.integers(0, 3, s)) if ties else rng.random
    return {str(i): draw(s) * 1.0 for i, s in enumerate(shapes)}


def none(scores) -> dict[str, np.ndarray]:
    return {name: np.zeros(s.shape, bool) for name, s in scores.items()}


def flat(masks) -> np.ndarray:
    return np.concatenate([mask.ravel() for mask in masks.values()])


def is_allowed(masks, shapes: Shapes) -> bool:
    for mask in masks.values():
        left = int((~mask).sum())
        if left < max(1, shapes.min_density * mask.size):
            return False
        k, _ = shapes.block
        for start in range(0, len(mask), k):
            block = mask[start : start + k]
            if (block != block[0]).any():
                return False
        if shapes.pattern is not None:
            n, m = shapes.pattern
            for row in mask.reshape(-1, m):
                if int((~row).sum()) < n:
                    return False
    return True


def best(scores, count: int, shapes: Shapes) -> float:
    """Least sum of scores of all allowed choices."""
    values = flat(scores)
    sums = []
    for chosen in combinations(range(len(values)), count):
        mask = np.zeros(len(values), bool)
        mask[list(chosen)] = True
        parts = np.split(mask, np.cumsum([s.size for s in scores.values()]))
        masks = {
            name: part.reshape(s.shape)
            for (name, s), part in zip(scores.items(), parts)
        }
        if is_allowed(masks, shapes):
            sums.append(values[mask].sum())
    return min(sums)


@pytest.mark.parametrize('ties', [False, True])
@pytest.mark.parametrize('seed', range(3))
@pytest.mark.parametrize(
    'shapes, count, sizes',
    [
        (Shapes(), 7, [(2, 3), (3, 2)]),
        (Shapes(), 10, [(2, 3), (3, 2)]),  # one stays of each
        (Shapes(min_density=0.5), 5, [(2, 3), (5, 1)]),
        (Shapes(block=(2, 1)), 6, [(2, 3), (4, 2)]),
        (Shapes(pattern=(2, 4)), 6, [(2, 4), (1, 4)]),
        (Shapes(pattern=(1, 2)), 5, [(2, 4), (2, 2)]),
        (Shapes(block=(2, 1), pattern=(1, 2)), 4, [(2, 4), (2, 2)]),
    ],
)
def test_the_choice_is_the_best_of_all(shapes, count, sizes, seed, ties):
    scores = layers(*sizes, seed=seed, ties=ties)
    masks = choose(scores, none(scores), count, shapes)
    assert int(flat(masks).sum()) == count
    assert is_allowed(masks, shapes)
    found = flat(scores)[flat(masks)].sum()
    np.testing.assert_allclose(found, best(scores, count, shapes))


def test_of_equal_scores_the_first_go():
    scores = {'a': np.ones((2, 2)), 'b': np.ones((1, 3))}
    masks = choose(scores, none(scores), 5, Shapes())
    # one stays of the first layer
    assert masks['a'].ravel().tolist() == [True, True, True, False]
    assert masks['b'].ravel().tolist() == [True, True, False]


def test_exactly_half_of_four():
    scores = {'w': np.array([[1.875, 7.5], [11.25, 20.0]])}
    masks = choose(scores, none(scores), 2, Shapes())
    assert masks['w'].tolist() == [[True, True], [False, False]]


def test_blocks_of_four_outputs():
    weight = np.arange(1.0, 17).reshape(8, 2)
    masks = choose({'w': weight}, none({'w': weight}), 8, Shapes(block=(4, 1)))
    assert masks['w'].tolist() == [[True, True]] * 4 + [[False, False]] * 4


def test_the_last_block_may_be_smaller_and_counts_by_its_mean():
    scores = {'w': np.array([[5.0], [5.0], [5.0], [5.0], [2.0]])}
    shapes = Shapes(block=(4, 1))
    one = choose(scores, none(scores), 1, shapes)['w']
    assert one.ravel().tolist() == [False] * 4 + [True]
    # the others do not fit, since one weight stays
    assert choose(scores, none(scores), 4, shapes)['w'].tolist() == (
        one.tolist()
    )


def test_blocks_along_inputs_and_other_axes():
    scores = layers((4, 6, 3, 3))
    shapes = Shapes(block=(2, 3))
    masks = choose(scores, none(scores), 108, shapes)
    blocks = masks['0'].reshape(2, 2, 2, 3, 3, 3)
    assert (blocks == blocks[:, :1, :, :1]).all()
    means = scores['0'].reshape(2, 2, 2, 3, 3, 3).mean((1, 3))
    expected = np.zeros(36, bool)
    expected[means.ravel().argsort()[:18]] = True
    assert (blocks[:, 0, :, 0].ravel() == expected).all()


def test_patterns_hold_at_each_position_of_a_kernel():
    scores = layers((3, 8, 2, 2))
    count = scores['0'].size // 2
    masks = choose(scores, none(scores), count, Shapes(pattern=(2, 4)))
    for o, g, y, x in np.ndindex(3, 2, 2, 2):
        of = slice(4 * g, 4 * g + 4)
        expected = scores['0'][o, of, y, x].argsort()[:2]
        found = np.flatnonzero(masks['0'][o, of, y, x])
        assert sorted(expected) == found.tolist()


def test_steps_with_a_pattern_end_in_the_pattern():
    shapes = Shapes(pattern=(2, 4))
    scores = layers((4, 8), (2, 4))
    masks = none(scores)
    for seed, count in enumerate([5, 8, 7]):
        before = flat(masks)
        new = layers((4, 8), (2, 4), seed=seed)
        masks = choose(new, masks, count, shapes)
        assert flat(masks)[before].all()
    assert is_allowed(masks, shapes)
    assert int((~flat(masks)).sum()) == 20


def test_what_is_pruned_stays_pruned_and_does_not_count():
    scores = layers((4, 4), (3, 3))
    first = choose(scores, none(scores), 10, Shapes())
    other = layers((4, 4), (3, 3), seed=5)
    second = choose(other, first, 6, Shapes())
    gone = flat(first)
    assert flat(second)[gone].all()
    left = np.flatnonzero(~gone)
    expected = left[flat(other)[left].argsort()[:6]]
    assert sorted(expected) == np.flatnonzero(flat(second) & ~gone).tolist()


def test_layers_divided_by_their_sum():
    scores = {'small': np.array([[0.1, 0.3]]), 'large': np.array([[1.0, 9.0]])}
    assert choose(scores, none(scores), 1, Shapes())['small'].sum() == 1
    masks = choose(scores, none(scores), 1, Shapes(), 'sum')
    # 0.25 and 0.75 of one, 0.1 and 0.9 of the other
    assert masks['large'].tolist() == [[True, False]]


def test_scores_of_zero_can_be_divided_by_their_sum():
    scores = {'zero': np.zeros((2, 2)), 'other': np.ones((2, 2))}
    masks = choose(scores, none(scores), 3, Shapes(), 'sum')
    assert int(masks['zero'].sum()) == 3


def test_floors_leave_too_little():
    scores = layers((2, 4))
    with pytest.raises(ValueError, match='only 4 can') as caught:
        choose(scores, none(scores), 5, Shapes(min_density=0.5))
    assert 'min_density' in str(caught.value)


def test_scores_that_are_not_finite():
    scores = layers((2, 4))
    scores['0'][1, 1] = np.nan
    with pytest.raises(ValueError, match='scores of 0 are not finite'):
        choose(scores, none(scores), 1, Shapes())
    # of what is gone there need not be any
    gone = {'0': np.isnan(scores['0'])}
    assert choose(scores, gone, 1, Shapes())['0'].sum() == 2


@pytest.mark.parametrize(
    'shapes, shape, least',
    [
        (Shapes(), (4, 5), 1),
        (Shapes(min_density=0.3), (4, 5), 6),
        (Shapes(min_density=0.1), (3, 10, 1), 3),
        (Shapes(block=(4, 1)), (8, 2), 4),
        (Shapes(block=(4, 1), min_density=0.3), (8, 2), 8),
        (Shapes(pattern=(2, 4)), (2, 8), 8),
        (Shapes(pattern=(2, 4), min_density=0.75), (2, 8), 12),
    ],
)
def test_least_that_stays(shapes, shape, least):
    assert shapes.least(shape) == least
    scores = layers(shape)
    most = scores['0'].size - least
    masks = choose(scores, none(scores), most, shapes)
    assert int((~masks['0']).sum()) == least
    with pytest.raises(ValueError, match='can be'):
        choose(scores, none(scores), most + 4, shapes)


def test_layers_that_patterns_do_not_divide():
    shapes = Shapes(pattern=(2, 4))
    assert [shapes.fits(s) for s in [(8, 3, 7, 7), (8, 1, 3, 3)]] == [
        *(False, False),
    ]
    assert shapes.fits((1, 8))
    assert Shapes().fits((8, 3))


def test_every_step_keeps_the_same_share():
    shares = [left_after(t, 4, 1.0, 0.15) for t in range(1, 5)]
    np.testing.assert_allclose(shares, 0.15 ** (np.arange(1, 5) / 4))
    assert shares[-1] == 0.15
    np.testing.assert_allclose(left_after(1, 2, 0.5, 0.02), 0.1)
