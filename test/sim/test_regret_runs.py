"""A run counts as made only while the code that made it is what it was."""

from bench.regret.code import fingerprint
from bench.regret.run import keys


def test_a_changed_policy_makes_its_runs_anew(tmp_path):
    file = tmp_path / "policy.py"
    file.write_text("GAMMA = 1\n")
    first = fingerprint((tmp_path,))
    assert fingerprint((tmp_path,)) == first
    file.write_text("GAMMA = 1  # the smallest\n")
    assert fingerprint((tmp_path,)) == first
    file.write_text("GAMMA = 2\n")
    second = fingerprint((tmp_path,))
    assert second != first
    lines = [
        {"scenario": "day", "policy": "model", "seed": 0, "code": first},
        {"scenario": "day", "policy": "off", "seed": 0},
    ]
    assert keys(lines, first) == {("day", "model", 0)}
    assert keys(lines, second) == set()


def test_the_package_s_own_code_is_in_it(tmp_path):
    assert len(fingerprint()) == 12 and fingerprint() != fingerprint((tmp_path,))
