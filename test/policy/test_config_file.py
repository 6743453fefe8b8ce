"""The config file: strict, and honest about what can't change live."""

import dataclasses

import pytest

from sglang_nightjar.errors import ConfigError
from sglang_nightjar.policy import config_file
from sglang_nightjar.policy.config_file import Config, load, not_live, parse

FULL = """
policy: {name: nightjar, params: {bin_iterations: 4}, seed: 3, timeout: 2, memory_mb: 512}
shadow: [{name: ema}, {path: mine.py}]
gamma: {candidates: [3, 0, 1]}
link: {endpoint: "ipc:///run/x/policy", stale_after: 2, fallback: 3}
log: {path: /tmp/log, max_mb: 1, files: 2, telemetry: false}
"""


def test_reads_everything(tmp_path):
    file = tmp_path / "nightjar.yaml"
    file.write_text(FULL)
    config = load(file)
    assert config.policy.params == {"bin_iterations": 4}
    assert config.gamma.candidates == (0, 1, 3)
    assert [spec.path for spec in config.shadow] == [None, str(tmp_path / "mine.py")]
    assert (config.link.stale_after, config.log.files) == (2.0, 2)


def test_nothing_is_the_default():
    assert parse("") == Config() == parse("policy:\nlog:\n")
    assert Config().policy.name == "model"


def test_off_is_a_name_and_no_boolean():
    assert parse("policy: {name: off}\nlog: {telemetry: false}").policy.name == "off"
    with pytest.raises(ConfigError, match=r"log\.telemetry: 'no' must be true or false"):
        parse("log: {telemetry: no}")


@pytest.mark.parametrize(
    "text, said",
    [
        ("policy: {name: [", "no YAML"),
        ("policy: !!python/object/apply:os.system [ls]", "no YAML"),
        ("polcy: {}", "polcy: there is no such setting; allowed are: policy, shadow, gamma, memory, link, log"),
        ("policy: nightjar", "policy: 'nightjar' must be a mapping"),
        ("policy: {name: a, path: b.py}", "policy: name and path can't both be set"),
        ("policy: {timeout: 0}", r"policy.timeout: 0.0 must be a number from 0.05 to 60.0"),
        ("gamma: {candidates: []}", r"gamma: candidates: \[\] must have at least one"),
        ("gamma: {candidates: [65]}", r"gamma.candidates\[0\]: 65 must be an integer from 0 to 64"),
        ("link: {stale_after: soon}", "link.stale_after: 'soon' must be a number"),
        ("memory: {reclaim: kv}", "memory.reclaim: 'kv' must be one of weights, weights.kv"),
        (
            "memory: {mode: keep, reclaim: weights+kv}",
            "memory: reclaim: weights.kv gives memory back, which mode: keep",
        ),
        ("log: {files: 0}", "log.files: 0 must be an integer from 1 to 1000"),
        ("shadow: [{}, {}, {}, {}, {}, {}, {}, {}, {}]", "at most 8"),
        ("a" * 20 + ": &a [*a]", "there is no such setting|no YAML"),
        ("[" * 5000, "no YAML"),
    ],
)
def test_refuses_and_says_why(text, said):
    with pytest.raises(ConfigError, match=said):
        parse(text)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match="No such file"):
        load(tmp_path / "none.yaml")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="binary"):
        load(tmp_path / "binary")
    (tmp_path / "huge").write_bytes(b"#" * 1_000_001)
    with pytest.raises(ConfigError, match="larger than"):
        load(tmp_path / "huge")


def test_what_cannot_change_live():
    old = parse(FULL)
    assert not_live(old, dataclasses.replace(old, policy=Config().policy, log=Config().log, shadow=())) == []
    link = dataclasses.replace(old.link, endpoint="ipc:///elsewhere", fallback=None, keys="/k")
    memory = dataclasses.replace(old.memory, reclaim="weights+kv")
    assert not_live(old, dataclasses.replace(old, memory=memory)) == [
        "memory.reclaim is read when a server starts; restart it to apply it"
    ]
    said = " ".join(not_live(old, dataclasses.replace(old, link=link)))
    assert "link.endpoint" in said and "link.fallback" in said and "link.keys" in said


def test_watcher_sees_each_save_once(tmp_path):
    file = tmp_path / "c"
    watcher = config_file.Watcher(file)
    assert not watcher.changed()
    file.write_text("a")
    assert watcher.changed() and not watcher.changed()
    replacement = tmp_path / "d"
    replacement.write_text("b")
    replacement.replace(file)
    assert watcher.changed() and not watcher.changed()
    file.unlink()
    assert watcher.changed() and not watcher.changed()
