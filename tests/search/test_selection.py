"""Choices worked out by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from mmgfp.search.limits import Floor
from mmgfp.search.selection import Selector

INF = float('inf')


def select(scores, costs, times=1, widths=None, originals=None, **floor):
    """Groups and units chosen, one after the other."""
    limit = Floor(**floor)
    widths = widths or [1] * len(scores)
    originals = originals or [len(s) for s in scores]
    selector = Selector(
        [np.array(s, float) for s in scores],
        [limit.units(n, width) for n, width in zip(originals, widths)],
        [limit.step(n, width) for n, width in zip(originals, widths)],
    )
    chosen = [selector.next(np.array(costs, float)) for _ in range(times)]
    return [c if c is None else (c[0], c[1].tolist()) for c in chosen]


def test_least_score_over_cost():
    # 4/4, 3/2 and 5/6: the last is the least, then 1, then 9/6 and 3/2 tie
    chosen = select([[4, 9], [3, 8], [5, 9]], [4, 2, 6], times=3)
    assert chosen == [(2, [0]), (0, [0]), (1, [0])]


def test_no_normalisation():
    assert select([[4, 9], [3, 8], [5, 9]], [1, 1, 1]) == [(1, [0])]


def test_ties_go_to_the_first_group_and_unit():
    chosen = select([[2, 1, 1], [1, 1, 2]], [1, 1], times=4)
    assert chosen == [(0, [1]), (0, [2]), (1, [0]), (1, [1])]


def test_same_input_same_choice():
    scores = [np.ones(50), np.ones(50)]
    runs = [select(scores, [1, 1], times=80) for _ in range(3)]
    assert runs[0] == runs[1] == runs[2]


def test_nothing_left():
    chosen = select([[1, 2], [3]], [1, 1], times=3)
    assert chosen == [(0, [0]), None, None]


@pytest.mark.parametrize(
    'floor, left',
    [
        (dict(), 1),
        (dict(min_channels=3), 3),
        (dict(min_ratio=0.25), 3),  # of 10: two and a half, so three
        (dict(min_channels=2, min_ratio=0.5), 5),
        (dict(min_channels=3, round_to=4), 4),
        (dict(min_channels=12), 10),
        (dict(min_ratio=0.55), 6),
    ],
)
def test_floors(floor, left):
    chosen = select([range(10)], [1], times=11, **floor)
    taken = [u for c in chosen if c is not None for u in c[1]]
    assert 10 - len(taken) == left
    assert sorted(taken) == list(range(10 - left))


@pytest.mark.parametrize(
    'channels, width, multiple',
    [
        *((256, 1, 8), (32, 1, 8), (31, 1, 4), (16, 1, 4), (15, 1, 2)),
        *((8, 1, 2), (7, 1, 1), (4, 1, 1), (3, 1, 1), (1, 1, 1)),
        *((64, 4, 8), (24, 6, 12), (16, 2, 4), (64, 16, 16)),
    ],
)
def test_automatic_multiples_leave_four_steps(channels, width, multiple):
    floor = Floor(round_to='auto')
    original = channels // width
    assert floor.step(original, width) * width == multiple
    assert floor.units(original, width) * width == multiple


def test_ratio_is_of_the_original_units():
    # 6 of once 10 are left; half of 10 must stay
    chosen = select([range(6)], [1], 2, originals=[10], min_ratio=0.5)
    assert chosen == [(0, [0]), None]


def test_floor_in_channels_of_wide_units():
    # units of 4 channels, 10 channels must stay: three units
    chosen = select([range(5)], [1], 3, widths=[4], min_channels=10)
    assert chosen == [(0, [0]), (0, [1]), None]


def test_round_to():
    # the first bundle brings 11 to 8, the following keep multiples of 4
    chosen = select([range(11)], [1], 3, round_to=4)
    assert chosen == [(0, [0, 1, 2]), (0, [3, 4, 5, 6]), None]


def test_round_to_with_wide_units():
    # units of 6 channels: two of them are the least multiple of 4
    chosen = select([range(5)], [1], 3, widths=[6], round_to=4)
    assert chosen == [(0, [0]), (0, [1, 2]), None]


def test_bundles_compare_by_sum_over_sum():
    # two units: (1 + 9) / (2 * 1) against (4 + 4) / (2 * 1)
    chosen = select([[1, 9, 20, 20], [4, 20, 4, 20]], [1, 1], round_to=2)
    assert chosen == [(1, [0, 2])]


def test_infinite_scores_go_last():
    scores = [[INF, INF, INF], [INF, 5, INF]]
    chosen = select(scores, [1, 1], times=5)
    assert chosen == [(1, [1]), (0, [0]), (0, [1]), (1, [0]), None]


def test_what_saves_nothing_goes_last():
    chosen = select([[0, 0], [7, 8]], [0, 1], times=2)
    assert chosen == [(1, [0]), (0, [0])]


def test_one_at_a_time_is_the_brute_force_argmin():
    rng = np.random.default_rng(0)
    scores = [rng.random(n) for n in (5, 9, 3, 7)]
    selector = Selector(scores, [2] * 4, [1] * 4)
    alive = [list(range(len(s))) for s in scores]
    for step in itertools.count():
        # like a real one, the cost of a unit depends on what is alive
        cost = np.array([1 + len(alive[(g + 1) % 4]) for g in range(4)])
        options = [
            (scores[g][u] / cost[g], g, u)
            for g in range(4)
            if len(alive[g]) > 2
            for u in alive[g]
        ]
        choice = selector.next(cost)
        if not options:
            assert choice is None
            assert step == 5 + 9 + 3 + 7 - 8
            break
        _, g, u = min(options)
        assert (choice[0], choice[1].tolist()) == (g, [u])
        alive[g].remove(u)
