"""The pace of pruning."""

from __future__ import annotations

import pytest

from mmgfp.search.schedule import Schedule


def schedule(**changes) -> Schedule:
    settings = dict(
        metric='flops',
        target=0.4,
        interval=10,
        channels_per_step='auto',
        prune_share=0.6,
    )
    return Schedule(**{**settings, **changes})


def simulate(plan: Schedule, iterations: int, choice: float, ratio=1.0):
    """Ratio after every pruning step when each choice costs the same."""
    start, ratios = ratio, []
    for iteration in range(plan.interval, iterations + 1, plan.interval):
        goal = plan.goal(iteration, iterations, start)
        choices = 0
        while not plan.step_is_done(choices, ratio, goal):
            ratio -= choice
            choices += 1
        ratios.append(ratio)
    return ratios


def test_auto_reaches_the_target_at_the_end_of_its_share():
    ratios = simulate(schedule(), 100, choice=1e-4)
    # six steps in 60 % of 100 iterations, each a tenth of the original
    assert ratios[:6] == pytest.approx(
        [0.9, 0.8, 0.7, 0.6, 0.5, 0.4], abs=2e-4
    )
    assert ratios[6:] == [ratios[5]] * 4
    assert ratios[5] <= 0.4 < ratios[4]


def test_auto_starts_from_what_is_left():
    ratios = simulate(schedule(), 100, choice=1e-4, ratio=0.7)
    expected = [0.65, 0.6, 0.55, 0.5, 0.45, 0.4]
    assert ratios[:6] == pytest.approx(expected, abs=2e-4)


def test_auto_over_the_whole_training():
    ratios = simulate(schedule(prune_share=1.0), 40, choice=1e-4)
    assert ratios == pytest.approx([0.85, 0.7, 0.55, 0.4], abs=2e-4)


@pytest.mark.parametrize('target', [0.1, 0.3, 0.35, 0.7, 0.9])
def test_the_last_goal_is_the_target_exactly(target):
    plan = schedule(target=target)
    assert plan.goal(60, 100, 0.97) == target
    assert plan.goal(100, 100, 0.97) == target


def test_a_training_shorter_than_one_share_prunes_at_once():
    ratios = simulate(schedule(), 12, choice=1e-4)
    assert ratios == pytest.approx([0.4], abs=2e-4)


def test_a_number_of_choices_per_step():
    ratios = simulate(schedule(channels_per_step=2), 60, choice=0.125)
    assert ratios == [0.75, 0.5, 0.375, 0.375, 0.375, 0.375]


def test_a_number_never_goes_below_the_target():
    plan = schedule(channels_per_step=5)
    assert not plan.step_is_done(3, 0.41, plan.goal(10, 100))
    assert plan.step_is_done(3, 0.4, plan.goal(10, 100))
    assert plan.step_is_done(5, 0.9, plan.goal(10, 100))


def test_late_steps_still_reach_the_target():
    # a batch was skipped: steps fall on 6, 11, ... and the last one on 46
    plan = schedule(interval=5, prune_share=1.0)
    assert plan.goal(41, 45) == plan.target
    assert plan.goal(36, 45) > plan.target


def test_accumulation_counts_iterations():
    # four iterations per optimiser step: steps after 40 and 80 iterations
    plan = schedule(prune_share=1.0)
    half = 1 - (1 - plan.target) / 2
    assert plan.goal(40, 90, 1.0, 4) == pytest.approx(half)
    assert plan.goal(80, 90, 1.0, 4) == plan.target
