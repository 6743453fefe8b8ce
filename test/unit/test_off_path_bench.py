"""The arithmetic of bench/off_path."""

import os
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bench.off_path import mixed, served, thread_cpu
from bench.off_path.run import lowest_tenth, table


def test_the_table_compares_neighbours_and_quiet_iterations() -> None:
    none = {"whole": [50.0, 60.0], "outside": [2.0, 2.0], "whole_low": [48.0, 48.0], "outside_low": [1.0, 1.0]}
    ours = {"whole": [51.0, 66.0], "outside": [3.0, 3.0], "whole_low": [49.2, 49.2], "outside_low": [2.2, 2.2]}
    text = table({"32": {"none": none, "gamma 0": ours}}, {"none": 28.0, "gamma 0": 27.0})
    assert "| 32 | 55.00 | 58.50 | 1.060 (1.040 to 1.080) | 1.025 | 1.00 | 2.20 |" in text
    assert "| mean number of running requests | 28.0 | 27.0 |" in text


def test_the_lowest_tenth() -> None:
    assert lowest_tenth([5.0, 3.0]) == 3.0
    assert lowest_tenth([float(value) for value in range(20, 0, -1)]) == 3.0


def test_the_table_of_servers_compares_neighbours() -> None:
    text = served.table({"8": {"none #1": [30.0, 40.0], "gamma 0 #1": [33.0, 40.8]}})
    assert "| 8 | 35.00 | 36.90 | 1.060 (1.040 to 1.080) |" in text


def test_several_servers_of_a_kind_count_as_one_and_are_shown_by_themselves() -> None:
    times = {"none #1": [30.0, 40.0], "gamma 0 #1": [33.0, 44.0], "none #2": [34.0, 44.0], "gamma 0 #2": [31.0, 40.0]}
    assert "| 24 | 37.00 | 37.00 | 1.000 (1.000 to 1.000) |" in served.table({"24": times})
    lines = served.table_of_servers({"24": times}).splitlines()
    assert lines[0] == "| streams | none #1 | gamma 0 #1 | none #2 | gamma 0 #2 |"
    assert "| 24 | 1.000 (1.000 to 1.000) | 1.100 (1.100 to 1.100) | 1.117 (1.108 to 1.125) | 1.017" in lines[2]


def test_the_table_of_a_mixed_load_compares_repetitions() -> None:
    step, prefill = False, True
    none = [[(step, 50.0, 49.0), (step, 52.0, 50.0), (prefill, 30.0, 28.0)], [(step, 60.0, 59.0)]]
    ours = [[(step, 53.0, 50.0), (prefill, 29.0, 27.0)], [(step, 61.0, 58.0), (prefill, 99.0, 98.0)]]
    text = mixed.table({"none": none, "gamma 0": ours})
    assert "| a decode step | 55.50 | 57.00 | 1.50 (1.25 to 1.75) |" in text
    assert "| a decode step, outside the forward pass | 1.25 | 3.00 | 1.75 (1.62 to 1.88) |" in text
    # A repetition in which one of the two had no prefill of one request says nothing.
    assert "| a prefill | 30.00 | 29.00 | -1.00 (-1.00 to -1.00) |" in text


def test_cpu_is_counted_by_thread() -> None:
    """A thread of this very process with a name of its own works for 0.2 s."""
    server = SimpleNamespace(process=SimpleNamespace(pid=os.getpid(), poll=lambda: None), children=list)

    def work() -> None:
        Path(f"/proc/self/task/{threading.get_native_id()}/comm").write_text("busy-one")
        while time.thread_time() < 0.2:
            pass
        done.set()
        end.wait(10)

    done, end = threading.Event(), threading.Event()
    thread = threading.Thread(target=work)
    before = thread_cpu.cpu_ms(server)  # type: ignore[arg-type]
    thread.start()
    assert done.wait(30)
    took = thread_cpu.cpu_ms(server) - before  # type: ignore[arg-type]
    end.set()
    thread.join()
    assert took["http: busy-one"] == pytest.approx(200, abs=60)
    assert took["http: first"] < 100


def test_the_table_of_threads_has_means_and_leaves_out_what_takes_nothing() -> None:
    none = [Counter({"http: first": 3.0}), Counter({"http: first": 5.0, "http: others": 0.02})]
    ours = [Counter({"http: first": 4.0, "policy: first": 0.4}), Counter({"http: first": 5.0})]
    lines = thread_cpu.table({"none": none, "gamma 0": ours}).splitlines()  # type: ignore[dict-item]
    assert lines[0] == "| CPU, ms a step | none | gamma 0 |"
    assert lines[2:] == ["| http: first | 4.00 | 4.50 |", "| policy: first | 0.00 | 0.20 |"]
