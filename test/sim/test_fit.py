"""A simulated server writes a log, and the fit finds the server in it again."""

from dataclasses import replace

import orjson
import pytest

from sglang_nightjar import cli
from sglang_nightjar.core.gammas import constant
from sglang_nightjar.core.messages import TelemetryBatch
from sglang_nightjar.core.policy import Decision, Policy
from sglang_nightjar.core.wire import encode
from sglang_nightjar.errors import ConfigError
from sglang_nightjar.policy.loader import make
from sglang_nightjar.sim.builtin import builtin
from sglang_nightjar.sim.fit import fit
from sglang_nightjar.sim.loads import Lengths, LoadSettings
from sglang_nightjar.sim.world import simulate


class Logger(Policy):
    """Runs every γ in turn and keeps a decision log."""

    name = "logger"

    def __init__(self):
        super().__init__()
        self.lines = []

    def hello(self, hello):
        self.candidates = hello.candidates
        self.log(hello)
        return Decision(constant(hello.start_gamma), "first")

    def telemetry(self, sender, record):
        self.log(TelemetryBatch(sender, len(self.lines), (record,)))
        if record.iteration % 10 == 0:
            gamma = self.candidates[record.iteration // 10 % len(self.candidates)]
            return Decision(constant(gamma), "next")

    def log(self, message):
        self.lines.append(orjson.dumps({"at": 1, "frame": orjson.loads(encode(message))}))


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    policy = Logger()
    load = LoadSettings(
        clients=((30.0, 1), (30.0, 3), (30.0, 8), (40.0, 16), (40.0, 32)),
        prompt=Lengths(48, 0.5),
        output=Lengths(60, 0.5),
    )
    simulate(builtin("demo-cpu"), load, policy)
    file = tmp_path_factory.mktemp("log") / "decisions.jsonl"
    file.write_bytes(b"\n".join(policy.lines) + b"\n")
    return file


def test_costs_and_acceptance_are_found_again(log):
    truth, found = builtin("demo-cpu"), fit(log).setup
    for size in (1, 3, 8, 16, 30):
        for gamma in (0, 1, 3, 5):
            context = 80 * size
            expected = truth.costs.decode_ns(size, gamma, context)
            assert found.costs.decode_ns(size, gamma, context) == pytest.approx(expected, rel=0.08)
    assert found.costs.noise == pytest.approx(truth.costs.noise, rel=0.3)
    assert found.costs.prefill_ns(100) == pytest.approx(truth.costs.prefill_ns(100), rel=0.25)
    wanted = truth.acceptance.classes[0].rates
    assert found.acceptance.classes[0].rates == pytest.approx(wanted, abs=0.05)


def test_the_fitted_server_behaves_like_the_first_on_another_load(log):
    truth, found = builtin("demo-cpu"), fit(log).setup
    load = LoadSettings(clients=((30.0, 5), (30.0, 24)), prompt=Lengths(48), output=Lengths(100))
    for name in ("off", "static"):
        first, second = (simulate(setup, load, make(name, None, {}, 0)) for setup in (truth, found))
        assert second.rate == pytest.approx(first.rate, rel=0.05)
        assert second.latency_ms["mean"] == pytest.approx(first.latency_ms["mean"], rel=0.08)


def test_stalls_are_found_as_seconds(tmp_path):
    setup = builtin("demo-cpu")
    setup = replace(setup, costs=replace(setup.costs, stalls_per_s=0.5, stall_ns=0.8e9))
    load = LoadSettings(clients=((200.0, 2), (200.0, 24)), prompt=Lengths(48, 0.5), output=Lengths(60, 0.5))
    policy, file = Logger(), tmp_path / "decisions.jsonl"
    simulate(setup, load, policy)
    file.write_bytes(b"\n".join(policy.lines) + b"\n")
    found = fit(file).setup.costs
    assert found.stalls_per_s == pytest.approx(0.5, rel=0.4)
    assert found.stall_ns == pytest.approx(0.8e9, rel=0.35)
    assert found.noise == pytest.approx(setup.costs.noise, rel=0.4)


def test_too_little_is_refused(log, tmp_path):
    short = tmp_path / "short.jsonl"
    short.write_bytes(b"\n".join(log.read_bytes().splitlines()[:20]))
    with pytest.raises(ConfigError, match="at least 50"):
        fit(short)


def test_iterations_that_were_cut_short_are_refused(log, tmp_path):
    cut, lines = tmp_path / "cut.jsonl", log.read_bytes().splitlines()
    told = orjson.loads(next(line for line in reversed(lines) if orjson.loads(line)["frame"]["records"][0][-1]))
    [record] = told["frame"]["records"]
    record[-2] -= 1
    cut.write_bytes(b"\n".join([*lines, orjson.dumps(told)]))
    with pytest.raises(ConfigError, match="trim: false"):
        fit(cut)


def test_commands(log, tmp_path, capsys):
    file = tmp_path / "server.yaml"
    assert cli.main(["simulate", "fit", str(log), "-o", str(file)]) == 0
    run = ["simulate", "run", "--server", str(file), "--clients", "5:1", "5:4", "--policies", "off", "model", "--json"]
    capsys.readouterr()
    assert cli.main(run) == 0
    results = orjson.loads(capsys.readouterr().out)
    assert results["off"]["shares"]["0"] > 0.95
    assert results["model"]["tokens"] > 0
    assert cli.main(["simulate", "servers"]) == 0
    assert "h200-8b" in capsys.readouterr().out
    assert cli.main(["simulate", "run"]) == 2
    assert "exactly one of --load" in capsys.readouterr().err
