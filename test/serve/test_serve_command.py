"""The command line, what it refuses, and how results are kept."""

from pathlib import Path
from typing import Any

import pytest

from bench.serve import arms, budget, cli, servers
from bench.serve.forecast import Forecast, duration
from bench.serve.order import order
from bench.serve.scenarios import catalogue
from bench.serve.settings import Settings, make_job
from bench.serve.store import Store
from sglang_nightjar import benchmark
from sglang_nightjar import cli as nightjar
from sglang_nightjar.errors import ConfigError


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--arms", "fastest"], "no such arm; there are none, off, static-N"),
        (["--arms", "mine.py"], "no such arm"),
        (["--arms", "static-0"], "N from 1"),
        (["--arms", "nightjar:memory"], "NAME:key=value"),
        (["--scenarios", "storm"], "no such scenario; there are surge, bursts"),
        (["--scenarios", "trace"], "it needs --trace"),
        (["--trace", "/nowhere.csv"], "No such file"),
        (["--rate-scale", "0"], "must be above 0"),
        (["--new-tokens", "9", "4"], "no less than the fewest"),
        (["--prompts", "/nowhere.jsonl"], "no such file"),
        (["--model-path", "/some/model"], "name both, or neither"),
        (["--model-path", "/some/model", "--draft-model-path", "/x"], "/some/model is no folder, and can't be fetched"),
    ],
)
def test_what_can_not_work_is_refused(argv: list[str], says: str, capsys: Any) -> None:
    assert cli.main(argv) == 2
    assert says in capsys.readouterr().err


def test_the_front_door_finds_the_benchmark(capsys: Any, tmp_path: Path, monkeypatch: Any) -> None:
    assert nightjar.main(["bench", "--list"]) == 0
    listed = capsys.readouterr().out
    assert "sglang-adaptive" in listed and "surge" in listed and "nightjar" in listed
    assert benchmark.find(tmp_path) is None
    monkeypatch.setattr(benchmark, "find", lambda *places: None)
    assert nightjar.main(["bench"]) == 2
    assert "not part of the installed package" in capsys.readouterr().err


def test_arms() -> None:
    assert arms.make("static-3").policy == {"name": "static", "params": {"gamma": 3}}
    assert arms.make("sglang-static-3").server == "static-3"
    assert arms.make("nightjar:memory=512,pool=false").policy == {
        "name": "nightjar",
        "params": {"memory": 512, "pool": False},
    }
    names = arms.default_names()
    assert (
        names[0] == "none"
        and names[-3:] == ["nightjar", "model+keep", "nightjar+keep"]
        and {"ema", "sglang-adaptive", "static-5"} <= set(names)
    )
    assert len({arms.make(name).slug for name in names}) == len(names)


def test_runs_under_other_conditions_are_not_mixed(tmp_path: Path) -> None:
    store = Store(tmp_path / "out")
    store.open(Settings().as_json())
    store.save("surge.none.0", {"run": "surge.none.0"})
    Store(tmp_path / "out").open(Settings().as_json())
    assert store.has("surge.none.0") and not store.has("surge.none.1")
    with pytest.raises(ConfigError, match=r"kv_tokens = 8192, and now it is 4096"):
        store.open(Settings(kv_tokens=4096).as_json())
    store.set_aside("surge.none.0")
    assert not store.has("surge.none.0") and store.set_aside_count() == 1 and list(store.all()) == []


class _Words:
    """A prompt source without a tokenizer."""

    def draw(self, count: int, seed: str, lengths: Any = ()) -> list[list[int]]:
        return [[hash((seed, i)) % 1000] * (lengths[i] if lengths else 3) for i in range(count)]


def test_every_arm_gets_the_same_load() -> None:
    settings, surge = Settings(seed=7), catalogue()["surge"]

    def job(repetition: int, url: str) -> Any:
        return make_job(surge, repetition, settings, _Words(), url)  # type: ignore[arg-type]

    assert job(0, "http://a").requests == job(0, "http://b").requests
    assert job(0, "http://a").requests != job(1, "http://a").requests
    requests = job(0, "http://a").requests
    assert all(32 <= r.new_tokens <= 96 for r in requests)
    assert [r.at for r in requests] == sorted(r.at for r in requests)
    other = make_job(surge, 0, Settings(seed=8), _Words(), "http://a")  # type: ignore[arg-type]
    assert other.requests != requests


@pytest.mark.parametrize(("given", "state"), [(None, "none"), ("/tmp/learnt", "/tmp/learnt")])
def test_runs_start_cold_unless_asked(given: str | None, state: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.delenv("NIGHTJAR_STATE", raising=False)
    if given:
        monkeypatch.setenv("NIGHTJAR_STATE", given)
    started = []

    class Started:
        def __init__(self, _flags: list[str], _log: Path, key: str, port: int | None, **env: str) -> None:
            started.append(env)

        def __enter__(self) -> None: ...

    monkeypatch.setattr(servers, "Server", Started)
    servers.Fleet(servers.Models("target", "draft"), Settings(), tmp_path)._start("steered")
    assert started == [{"NIGHTJAR_STATE": state}]


def test_offloading_is_compared_where_memory_is_short() -> None:
    runs = cli._runs(["surge", "memory"], None, 1)
    kept = [(run.scenario, run.arm.name) for run in runs if run.arm.name.endswith("+keep")]
    assert sorted(kept) == [("memory", "model+keep"), ("memory", "nightjar+keep")]
    assert {run.arm.name for run in runs if run.scenario == "memory"} == set(arms.default_names())
    assert len(cli._runs(["surge"], ["nightjar+keep"], 1)) == 1
    memory = make_job(catalogue()["memory"], 0, Settings(), _Words(), "http://a")  # type: ignore[arg-type]
    assert all(320 <= r.new_tokens <= 480 for r in memory.requests)
    # As many as may run, each half done, are more than the KV cache holds.
    assert Settings().max_running_requests * (40 + 320 / 2) < Settings().kv_tokens < 32 * (60 + 480 / 2)


def test_what_is_left() -> None:
    scenarios = catalogue()
    runs = order(["surge"], [arms.make(name) for name in ("none", "static-3", "nightjar")], 2)
    # none | static-3, nightjar || nightjar, static-3 | none: new servers in the second repetition.
    kinds = [run.arm.server for run in runs]
    assert kinds == ["plain", "steered", "steered", "steered", "steered", "plain"]
    forecast = Forecast(scenarios, warm_up_s=10.0, side_by_side=False, besides=[20.0, 30.0])
    assert forecast.seconds(runs, None, set(), [40.0]) == pytest.approx(6 * (90 + 25) + 4 * 40)
    assert forecast.seconds(runs[2:], runs[1], {"steered"}, [40.0]) == pytest.approx(4 * (90 + 25) + 2 * 40)
    assert forecast.seconds(runs[3:], runs[2], {"steered"}, [40.0]) == pytest.approx(3 * (90 + 25) + 2 * 40)
    side_by_side = Forecast(scenarios, warm_up_s=10.0, side_by_side=True, besides=[25.0])
    assert side_by_side.seconds(runs, None, set(), [40.0]) == pytest.approx(6 * (90 + 25) + 2 * 40)
    assert forecast.seconds([], None, set(), []) == 0
    assert [duration(s) for s in (5, 1500, 11_100)] == ["1 min", "25 min", "3 h 05 min"]


def test_a_server_without_a_draft_gets_its_memory(target: Path, draft: Path) -> None:
    extra = budget.extra_tokens(target, draft, 8192)
    # 30 layers with 3 heads of 64, keys and values, in fp32: 46,080 bytes a token.
    weights = budget._weights(draft) * 4
    assert extra == (weights + 8192 * 2 * 3 * 64 * 4) // 46_080
    assert 500 < extra < 2000
