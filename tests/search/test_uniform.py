"""The same ratio of every group."""

from __future__ import annotations

import numpy as np
import pytest
from nets import Concat, Residual
from width_search import chain, find, random_scores

from mmgfp.search.budget import Budget
from mmgfp.search.limits import Floor
from mmgfp.search.uniform import Uniform


def widths(net, budget, scores=None) -> np.ndarray:
    search = Uniform()
    search.start(net, budget, random_scores(net) if scores is None else scores)
    return search.widths()


def by_trial(net, budget) -> np.ndarray:
    """The widths next to every ratio, from the largest on."""
    choices = budget.choices(net)
    for ratio in np.linspace(1, 0, 1001):
        # of two equally near ones the wider
        found = [
            c[::-1][np.argmin(abs(c[::-1] - ratio * c[-1]))] for c in choices
        ]
        if budget.meets(net, found):
            return np.array(found)
    raise AssertionError('none meets the budget')


@pytest.mark.parametrize('metric', ['flops', 'params', 'acts'])
@pytest.mark.parametrize('ratio', [0.3, 0.7])
def test_largest_ratio_within_the_budget(metric, ratio):
    for model in (chain(16, 12), Residual(), Concat()):
        net, budget = find(model), Budget(metric, ratio)
        try:
            budget.check(net)
        except ValueError:
            continue
        np.testing.assert_array_equal(
            widths(net, budget), by_trial(net, budget)
        )


def test_floors_and_multiples():
    net = find(chain(32, 40))
    budget = Budget('flops', 0.3, Floor(round_to=8, min_ratio=0.25))
    found = widths(net, budget)
    np.testing.assert_array_equal(found, by_trial(net, budget))
    assert (found % 8 == 0).all() and (found >= 8).all()


def test_groups_without_scores_keep_their_width():
    net = find(chain(16, 16))
    scores = random_scores(net)
    scores[0][:] = np.nan
    found = widths(net, Budget('flops', 0.6), scores)
    assert found[0] == 16 and found[1] < 16
    named = Budget('flops', 0.6, fixed=frozenset([net.units.groups[0].name]))
    np.testing.assert_array_equal(found, widths(net, named))


def test_scores_of_other_groups():
    net = find(chain(16, 16))
    with pytest.raises(ValueError, match=r'scores of \[16\] units, expected'):
        widths(net, Budget('flops', 0.5), [np.ones(16)])


def test_given_ratios_and_one_for_the_others():
    net = find(chain(16, 12, 20))
    budget = Budget('flops', 0.25)
    search = Uniform(ratios={'0': 1.0, '2': 0.26})
    search.start(net, budget, random_scores(net))
    found = search.widths()
    assert found[0] == 16
    assert found[1] == 3  # 0.26 of 12
    # the largest width of the third that meets the budget
    assert found[2] < 20 and budget.meets(net, found)
    assert not budget.meets(net, [16, 3, found[2] + 1])


@pytest.mark.parametrize(
    'ratios, words',
    [
        ({'0': 1.5}, r"ratios\['0'\]=1.5: expected a number above 0"),
        ({'0': True}, 'expected a number above 0'),
        ({'nix.*': 0.5}, 'matches no layer whose outputs can be pruned'),
        ({'*': 0.9}, r'cannot be reached: with ratios=.* at least 0\.8'),
    ],
)
def test_ratios_that_do_not_fit(ratios, words):
    net = find(chain(16, 16))
    with pytest.raises(ValueError, match=words):
        search = Uniform(ratios=ratios)
        search.start(net, Budget('flops', 0.5), random_scores(net))


def test_target_below_the_least_widths():
    net = find(chain(16, 16))
    with pytest.raises(ValueError, match='cannot be reached'):
        widths(net, Budget('flops', 0.2, Floor(min_ratio=0.5)))
