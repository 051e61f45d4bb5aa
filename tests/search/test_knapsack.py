"""All widths at once: compared with all that there are."""

from __future__ import annotations

import numpy as np
import pytest
from nets import Chain, Concat, Residual
from width_search import (
    Parts,
    all_widths,
    chain,
    find,
    random_scores,
    staircase,
    sums_of_greatest,
)

from mmgfp.search.budget import Budget
from mmgfp.search.knapsack import Knapsack
from mmgfp.search.limits import Floor


def widths(net, budget, scores, **settings) -> np.ndarray:
    search = Knapsack(**settings)
    search.start(net, budget, scores)
    return search.widths()


def compared(net, budget, scores) -> float:
    """What is kept, as a ratio of the most that all widths keep."""
    found = widths(net, budget, scores)
    assert budget.meets(net, found)
    choices = budget.choices(net)
    assert all(n in c for n, c in zip(found, choices))
    best = max(
        sums_of_greatest(scores, other)
        for other in all_widths(net, budget, choices)
    )
    return sums_of_greatest(scores, found) / best


@pytest.mark.parametrize('metric', ['flops', 'params', 'acts'])
def test_optimum_where_no_layer_reads_another(metric):
    """Costs are linear there."""
    net = find(Parts(12, 9, 14))
    for ratio in (0.4, 0.7):
        for seed in range(2):
            scores = random_scores(net, seed)
            kept = compared(net, Budget(metric, ratio), scores)
            assert kept == pytest.approx(1, abs=1e-9)


def test_optimum_where_neighbours_keep_their_width():
    net = find(chain(8, 10, 8, 12))
    fixed = frozenset(net.units.groups[g].name for g in (1, 3))
    for ratio in (0.6, 0.8):
        budget = Budget('flops', ratio, fixed=fixed)
        kept = compared(net, budget, random_scores(net))
        assert kept == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize('metric', ['flops', 'params', 'acts'])
@pytest.mark.parametrize(
    'model',
    [chain(8, 10, 12), Chain(), Residual(), Concat()],
    ids=lambda model: type(model).__name__,
)
def test_near_the_optimum_where_layers_read_each_other(model, metric):
    net = find(model)
    for ratio, seed in ((0.5, 0), (0.5, 1), (0.8, 2)):
        kept = compared(net, Budget(metric, ratio), random_scores(net, seed))
        assert kept >= 0.97


def test_at_least_what_greedy_pruning_keeps():
    net = find(Parts(12, 9, 14))
    gains = []
    for ratio in (0.5, 0.7):
        for seed in range(4):
            scores = random_scores(net, seed)
            search = Knapsack()
            search.start(net, Budget('flops', ratio), scores)
            table = search._candidates
            greedy = table.widths(table.fit(table.last))
            kept = sums_of_greatest(scores, search.widths())
            gains.append(kept / sums_of_greatest(scores, greedy) - 1)
    assert min(gains) > -1e-9 and max(gains) > 1e-3


def test_latency_in_steps():
    """Units that cost nothing stay: widths are multiples of four."""
    model = chain(16, 16)
    net = find(model, latency=staircase(model))
    budget, scores = Budget('latency', 0.5), random_scores(net)
    found = widths(net, budget, scores)
    assert compared(net, budget, scores) >= 0.97
    assert (found % 4 == 0).all()


def test_floors_and_multiples():
    net = find(chain(32, 40))
    budget = Budget('flops', 0.4, Floor(round_to=8, min_channels=16))
    found = widths(net, budget, random_scores(net))
    assert (found % 8 == 0).all() and (found >= 16).all()
    assert budget.meets(net, found)


def test_few_candidates():
    net, budget = find(chain(32, 40)), Budget('flops', 0.5)
    found = widths(net, budget, random_scores(net), candidates=4)
    assert found[0] in (8, 16, 24, 32) and found[1] in (10, 20, 30, 40)


def test_groups_without_scores_keep_their_width():
    net, budget = find(chain(16, 16)), Budget('flops', 0.6)
    for missing in (np.nan, np.inf):
        scores = random_scores(net)
        scores[0][3] = missing
        found = widths(net, budget, scores)
        assert found[0] == 16 and found[1] < 16 and budget.meets(net, found)


def test_units_with_negative_scores_go():
    """Without them the loss is less, whatever they cost."""
    net, budget = find(chain(16, 16)), Budget('flops', 0.9)
    scores = random_scores(net)
    scores[0][::2] *= -1
    assert widths(net, budget, scores)[0] == 8


def test_scores_of_any_size():
    net, budget = find(chain(16, 16)), Budget('flops', 0.5)
    scores = random_scores(net)
    expected = widths(net, budget, scores)
    for scale in (1e-12, 1e12):
        scaled = [scale * part for part in scores]
        np.testing.assert_array_equal(widths(net, budget, scaled), expected)
    nothing = [0 * part for part in scores]
    assert budget.meets(net, widths(net, budget, nothing))


@pytest.mark.parametrize('candidates', [1, 2.5, True])
def test_numbers_of_candidates_that_are_none(candidates):
    with pytest.raises(ValueError, match=f'candidates={candidates!r}: exp'):
        Knapsack(candidates=candidates)
