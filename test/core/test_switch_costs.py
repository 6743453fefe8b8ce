"""The line that is fitted to measured switches, and the table made of it."""

import random

import pytest

from sglang_nightjar.core.bin_greedy import switch_cost
from sglang_nightjar.core.switch_costs import SwitchCosts


def test_nothing_seen_is_no_table() -> None:
    assert SwitchCosts().table(8) == ()
    assert SwitchCosts().cost(100, 4) == 0


def test_a_line_is_found_in_noise() -> None:
    draw, costs = random.Random(3), SwitchCosts()
    for _ in range(200):
        positions = draw.choice([4, 40, 400, 2000])
        costs.observe(positions, (500_000 + 20_000 * positions) * draw.uniform(0.9, 1.1))
    fixed, slope = costs.line()
    assert fixed == pytest.approx(500_000, rel=0.3)
    assert slope == pytest.approx(20_000, rel=0.1)
    assert costs.cost(64, 8) == pytest.approx(500_000 + 20_000 * 512, rel=0.1)


@pytest.mark.parametrize("seen", [[(10, 1000)], [(10, 1000), (10, 1200)], [(10, 9000), (1000, 800)]])
def test_few_or_strange_observations_give_no_negative_cost(seen: list[tuple[int, int]]) -> None:
    costs = SwitchCosts()
    for positions, ns in seen:
        costs.observe(positions, ns)
    assert min(costs.line()) >= 0
    assert costs.cost(10, 1) > 0


def test_it_follows_a_machine_that_became_slower() -> None:
    costs = SwitchCosts()
    for factor in (1, 3):
        for positions in [10, 100, 1000] * 100:
            costs.observe(positions, factor * 1000 * positions)
    assert costs.line()[1] == pytest.approx(3000, rel=0.15)


def test_policies_find_what_lies_between_the_cells() -> None:
    costs = SwitchCosts()
    costs.observe(100, 100_000)
    costs.observe(200, 190_000)
    table = costs.table(6)
    assert {size for _, size, _ in table} == {1, 2, 4, 8}
    for lag, size in ((60, 3), (64, 4), (5, 1), (4000, 8)):
        assert switch_cost(table, lag, size) == pytest.approx(costs.cost(lag, size), rel=1e-3)
