"""What a policy has learnt outlives a restart; what can't be read is a cold start and no failure."""

import json
import threading
from pathlib import Path

import pytest
from helpers.policy_load import make_hello
from helpers.policy_peers import Peer, PolicyProcess
from helpers.waiting import eventually

from sglang_nightjar.policy import loader, saved_state
from sglang_nightjar.policy.saved_state import SavedState, kind_of

COUNTING = """
from sglang_nightjar.core.gammas import constant
from sglang_nightjar.core.policy import Decision, Policy

class Counting(Policy):
    name = "counting"

    def __init__(self, params=None, seed=0):
        super().__init__(params, seed)
        self.seen = 0

    def hello(self, hello):
        return Decision(constant(hello.candidates[self.seen % 2]), f"it knows {self.seen}")

    def telemetry(self, sender, record):
        self.seen += 1

    def save(self):
        return {"version": 1, "seen": self.seen} if self.seen else {}

    def load(self, state):
        self.seen = state["seen"]
        if state["version"] != 1:
            raise ValueError("a state of another version")
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    file = tmp_path / "counting.py"
    file.write_text(COUNTING)
    return file


class Life:
    """One start of a policy, with its states in ``folder``."""

    def __init__(self, source: Path, folder: Path, cold: bool = False) -> None:
        def make():
            return loader.make(None, str(source), {}, 0)

        self.policy = make()
        self.saved = SavedState(folder, make, self.policy, cold)

    def meet(self, **hello) -> int:
        self.saved.take_up(make_hello(**hello))
        return self.policy.seen

    def save(self) -> None:
        done = threading.Event()
        self.saved.save(done.set)
        assert done.wait(5)


@pytest.fixture
def folder(tmp_path: Path, source: Path) -> Path:
    """With a state in it."""
    folder = tmp_path / "state"
    first = Life(source, folder)
    assert first.meet() == 0
    first.policy.seen = 7
    first.save()
    return folder


def test_the_next_life_goes_on_where_the_last_one_ended(source: Path, folder: Path) -> None:
    assert Life(source, folder).meet() == 7
    assert folder.stat().st_mode & 0o777 == 0o700
    assert [file.suffix for file in folder.iterdir()] == [".json"]


@pytest.mark.parametrize("other", [{"target": "u"}, {"draft": "e"}, {"hardware": "gpu"}, {"tp_size": 2},
                                   {"sglang_version": "0.6"}], ids=str)  # fmt: skip
def test_another_kind_of_scheduler_has_another_state(source: Path, folder: Path, other: dict) -> None:
    assert Life(source, folder).meet(**other) == 0


def test_it_is_loaded_once_and_not_over_what_was_learnt_since(source: Path, folder: Path) -> None:
    life = Life(source, folder)
    life.meet()
    life.policy.seen = 9
    assert life.meet(sender="s/dp1/b") == 9


@pytest.mark.parametrize(
    "damage, said",
    [
        (lambda text: text[:20], "JSONDecodeError"),
        (lambda text: b"", "JSONDecodeError"),
        (lambda text: b"[1]", "TypeError"),
        (lambda text: text.replace(b'"t"', b'"u"'), "of something else"),
        (lambda text: text.replace(b'{"version":1,"seen":7}', b"7"), "no state in it"),
        (lambda text: text.replace(b'"version":1', b'"version":2'), "a state of another version"),
        (lambda text: text.replace(b'"seen"', b'"sewn"'), "KeyError"),
    ],
    ids=["half", "empty", "a list", "another's", "no object", "refused", "the policy trips"],
)
def test_what_can_not_be_taken_up_is_a_cold_start_that_says_why(
    source: Path, folder: Path, damage, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    [file] = folder.iterdir()
    damaged = damage(file.read_bytes())
    assert damaged != file.read_bytes()
    file.write_bytes(damaged)
    life = Life(source, folder)
    assert life.meet() == 0
    assert said in caplog.text and str(file) in caplog.text
    life.policy.seen = 3
    life.save()
    assert Life(source, folder).meet() == 3


def test_a_cold_start_replaces_what_it_did_not_read(source: Path, folder: Path) -> None:
    life = Life(source, folder, cold=True)
    assert life.meet() == 0
    life.policy.seen = 2
    life.save()
    assert Life(source, folder).meet() == 2


def test_a_disk_that_takes_nothing_costs_the_state_only(
    source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    life = Life(source, tmp_path / "file" / "state")
    life.meet()
    life.policy.seen = 7
    life.save()
    assert "its state is not saved" in caplog.text
    life.policy.save = lambda: {"a": object()}
    life.save()
    assert "not JSON serializable" in caplog.text


def test_nothing_new_is_not_written(source: Path, folder: Path) -> None:
    life = Life(source, folder)
    life.meet()
    life.save()
    [file] = folder.iterdir()
    file.unlink()
    life.save()
    assert list(folder.iterdir()) == []


def test_where_it_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("NIGHTJAR_STATE")
    monkeypatch.setenv("NIGHTJAR_CACHE", str(tmp_path))
    assert saved_state.folder_of(None) == tmp_path / "state"
    assert saved_state.folder_of("/x") == Path("/x")
    assert saved_state.folder_of("none") is None
    monkeypatch.setenv("NIGHTJAR_STATE", "none")
    assert saved_state.folder_of("/x") is None


class TestProcess:
    """A real policy process, whose plan tells what it knows."""

    @pytest.fixture
    def process(self, tmp_path, source, monkeypatch):
        monkeypatch.delenv("NIGHTJAR_STATE")
        started = PolicyProcess(tmp_path / "p", config=f"policy: {{path: {source}, state: kept}}\n")
        yield started
        started.stop()

    def first_plan(self, process) -> tuple[Peer, str]:
        agent = Peer(process.endpoint)
        agent.hello()
        return agent, agent.plan(20).reason

    def test_a_stop_saves_and_the_first_plan_after_it_knows(self, process, tmp_path):
        agent, said = self.first_plan(process)
        assert said == "it knows 0"
        for _ in range(5):
            agent.iterate()
        eventually(lambda: agent.status()["policy"]["records"] == 5)
        agent.close()
        assert process.stop() == 0
        [file] = (tmp_path / "p" / "kept").iterdir()
        assert json.loads(file.read_text())["of"] == list(kind_of(make_hello()))
        process.start()
        agent, said = self.first_plan(process)
        agent.close()
        assert said == "it knows 5"
        assert "goes on with what it had learnt" in process.said()

    def test_a_swap_saves_for_whoever_comes_next(self, process):
        agent, _ = self.first_plan(process)
        for _ in range(5):
            agent.iterate()
        eventually(lambda: agent.status()["policy"]["records"] == 5)
        assert agent.ask("policy_set", name="static").ok
        [file] = (process.config.parent / "kept").iterdir()
        assert json.loads(file.read_text())["state"]["seen"] == 5
        agent.close()

    def test_a_damaged_file_is_a_line_in_the_log(self, process):
        kept = process.config.parent / "kept"
        kept.mkdir()
        life = Life(process.config.parent.parent / "counting.py", kept)
        life.saved.path(kind_of(make_hello())).write_text("{")
        agent, said = self.first_plan(process)
        assert said == "it knows 0"
        assert "WARNING: Policy counting starts cold" in process.said()
        assert agent.status()["counters"]["policy_errors"] == 0
        agent.close()
