"""The arithmetic of figures: percentiles, latencies, paired ratios, orders, tables."""

import math
import random
from collections import Counter

import numpy
import pytest
from scipy import stats

from bench.serve import arms, measures, order, paired
from bench.serve.job import Answer
from bench.serve.measures import Objectives
from bench.serve.scenarios import Phase
from bench.serve.steps import Steps, steps


def answer(due: float, *pieces: tuple[float, int], **more: object) -> Answer:
    made = Answer(0, due, due, list(pieces), pieces[-1][0] if pieces else due)
    made.tokens = list(range(pieces[-1][1] if pieces else 0))
    for name, value in more.items():
        setattr(made, name, value)
    return made


@pytest.mark.parametrize("count", [1, 2, 7, 100])
def test_percentiles_are_numpys(count: int) -> None:
    values = [random.Random(count).gauss(0, 1) for _ in range(count)]
    for q in (0, 1, 50, 95, 99, 100):
        assert measures.percentile(values, q) == pytest.approx(float(numpy.percentile(values, q)))
    assert math.isnan(measures.percentile([], 50))


def test_latencies_of_one_answer() -> None:
    one = answer(10.0, (10.5, 1), (10.7, 4), (11.5, 5))
    assert measures.ttft(one) == pytest.approx(0.5)
    assert measures.latency(one) == pytest.approx(1.5)
    assert measures.tpot(one) == pytest.approx(1.0 / 4)
    assert measures.gaps(one) == pytest.approx([0.2, 0.8])
    assert measures.tpot(answer(0.0, (1.0, 5))) is None


def test_figures_of_a_part() -> None:
    answers = [
        answer(0.0, (1.0, 1), (2.0, 11), verify_steps=5),
        answer(5.0, (6.0, 1), (12.0, 21), verify_steps=20),
        answer(6.0, error="status 500"),
    ]
    first = measures.measure(answers, [(0.0, 10.0)], Objectives(2.0, 0.2))
    # The second answer's last twenty tokens came after the part, the failed one counts nowhere.
    assert first["tokens_per_s"] == pytest.approx(1.2)
    # Two were due in it, one was answered.
    assert (first["requests"], first["requests_per_s"]) == (2, pytest.approx(0.1))
    assert first["latency_s"]["mean"] == pytest.approx((2.0 + 7.0) / 2)
    # The first has 0.1 s per token, the second 0.3 s: only one is good.
    assert (first["goodput_per_s"], first["attained"]) == (pytest.approx(0.1), 0.5)
    assert first["accepted_length"] == pytest.approx(30 / 25)
    later = measures.measure(answers, [(10.0, 20.0)], Objectives(2.0, 0.2))
    assert (later["tokens_per_s"], later["requests"], later["latency_s"]) == (pytest.approx(2.0), 0, None)


def test_parts_of_equal_name_are_one() -> None:
    phases = [Phase("between", 0, 10), Phase("burst", 10, 20), Phase("between", 20, 30)]
    found = measures.figures([answer(1, (2, 10)), answer(25, (26, 20))], phases, Objectives(1, 1))["by_phase"]
    assert list(found) == ["between", "burst"]
    assert found["between"]["requests"] == 2 and found["between"]["tokens_per_s"] == pytest.approx(30 / 20)


def test_what_clients_that_left_still_get_is_no_figure_of_the_next_phase() -> None:
    """Two clients, then one; the second one's last answer comes until 12 s."""
    phases = [Phase("2 clients", 0, 10, clients=2), Phase("1 client", 10, 20, clients=1)]
    answers = [
        answer(8, (9, 1), (13, 11), request=2),
        answer(8, (9, 1), (11.9, 91), request=1, ended=12),
        answer(13, (14, 1), (18, 71), request=4),
    ]
    assert measures.settled(answers, phases[1], 2) == 12
    found = measures.figures(answers, phases, Objectives(1, 1))
    assert found["by_phase"]["1 client"]["tokens_per_s"] == pytest.approx((10 + 71) / 8)
    assert found["whole"]["tokens_per_s"] == pytest.approx((11 + 91 + 71) / 20)
    # In an open loop there are no clients to wait for.
    assert measures.settled(answers, Phase("recovery", 10, 20), 0) == 10
    late = [answer(8, (9, 1), (25, 91), request=1)]
    nothing = measures.figures(late, phases, Objectives(1, 1))["by_phase"]["1 client"]
    assert nothing["tokens_per_s"] is None and nothing["requests"] == 0


def test_seconds() -> None:
    seconds = measures.seconds_of([answer(0.5, (1.25, 2), (2.5, 5))], 3.2)
    assert [s["due"] for s in seconds] == [1, 0, 0, 0]
    assert [s["tokens"] for s in seconds] == [0, 2, 3, 0]
    assert [s["open"] for s in seconds] == pytest.approx([0.5, 1.0, 0.5, 0.0])


def test_intervals_are_scipys_paired_t() -> None:
    draw = random.Random(3)
    theirs = {r: draw.uniform(50, 500) for r in range(6)}
    ours = {r: value * draw.uniform(1.0, 1.4) for r, value in theirs.items()}
    found = paired.ratio(ours, theirs)
    reference = stats.ttest_rel([math.log(v) for v in ours.values()], [math.log(v) for v in theirs.values()])
    interval = reference.confidence_interval(0.95)
    assert found.low == pytest.approx(math.exp(interval.low)) and found.high == pytest.approx(math.exp(interval.high))
    assert found.value == pytest.approx(float(stats.gmean([ours[r] / theirs[r] for r in ours])))
    # Loads that differ far more than the arms do: unpaired, nothing could be said.
    assert found.low > 1.0
    assert stats.ttest_ind(list(ours.values()), list(theirs.values())).pvalue > 0.05


def test_intervals_hold_what_they_promise() -> None:
    draw = random.Random(4)
    holds = 0
    for _ in range(400):
        logs = [draw.gauss(math.log(1.1), 0.1) for _ in range(5)]
        found = paired.ratio(dict(enumerate(map(math.exp, logs))), dict.fromkeys(range(5), 1.0))
        holds += found.low <= 1.1 <= found.high
    assert holds / 400 == pytest.approx(0.95, abs=0.03)


def test_a_ratio_needs_pairs() -> None:
    assert str(paired.ratio({1: 2.0}, {2: 1.0})) == "no data"
    assert str(paired.ratio({1: 2.0, 2: 9.0}, {1: 1.0})) == "×2.00"
    assert paired.ratio({1: 2.0, 2: 2.0}, {1: 1.0, 2: 1.0}).pairs == 2


def test_the_order_is_fair() -> None:
    compared = [arms.make(name) for name in ("none", "static-1", "static-3", "nightjar", "sglang-adaptive")]
    runs = order.order(["surge", "day"], compared, 6)
    assert Counter((r.scenario, r.arm.name) for r in runs) == {
        (s, a.name): 6 for s in ("surge", "day") for a in compared
    }
    assert len({r.name for r in runs}) == len(runs)
    rounds = [[r for r in runs if r.scenario == "surge" and r.repetition == n] for n in range(6)]
    shared = [[r.arm.name for r in one if r.arm.server == "steered"] for one in rounds]
    # ABBA: a drift that is linear in time cancels out of every difference over two repetitions.
    for first, second in zip(shared[::2], shared[1::2], strict=True):
        assert first == second[::-1]
    assert len({one[0] for one in shared[::2]}) == 3
    # Each kind of server is visited once a round, and each is first in turn.
    for one in rounds:
        kinds = [r.arm.server for r in one]
        assert sum(a != b for a, b in zip(kinds, kinds[1:], strict=False)) == 2
    assert Counter(one[0].arm.server for one in rounds) == {"plain": 2, "steered": 2, "adaptive": 2}
    # A benchmark that is stopped half way has every load as often.
    assert [run.repetition for run in runs] == sorted(run.repetition for run in runs)


def test_steps_are_told_from_the_pieces_of_all_answers() -> None:
    # Two answers decode together every 50 ms, seen 4 ms apart; a third is prefilled between, and then decodes too.
    first, second = [1.0, 1.05, 1.10, 1.19, 1.24], [1.004, 1.054, 1.104, 1.194, 1.244]
    third = [1.144, 1.192, 1.242]
    both = steps([first, second, third], 1.01, 9.0, 1)
    assert both.decodes == pytest.approx([0.05, 0.046, 0.05])
    assert both.prefills == pytest.approx([0.044])
    assert steps([first, second, third], 1.01, 9.0, 3).decodes == pytest.approx([0.046, 0.05])
    assert steps([first, second, third], 1.01, 1.2, 3).decodes == pytest.approx([0.046])
    # A step that brings a first piece along with others is neither.
    assert steps([[1.0, 1.05], [1.051]], 0.0, 9.0, 1) == Steps([], [])
