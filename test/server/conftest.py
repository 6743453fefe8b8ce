"""Fixtures of the tests that start servers."""

from pathlib import Path

import pytest
from helpers.lossless import Referee
from helpers.serving import gamma_flags
from helpers.tiny_pair import make_tiny_pair


@pytest.fixture(scope="module")
def referee(target: Path) -> Referee:
    """Each file has one of its own, so that its gigabyte is free again for the servers of the next."""
    return Referee(target)


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a test's own policy process listens; its folder is nobody else's."""
    folder = tmp_path_factory.mktemp("policy")
    folder.chmod(0o700)
    return folder / "socket"


@pytest.fixture(scope="session")
def tiny_flags(target: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Server flags for a tiny pair with random weights and γ=2: quick to start, and two ranks can share it."""
    tiny_target, tiny_draft = make_tiny_pair(tmp_path_factory.mktemp("pair"), target)
    return [
        *("--model-path", str(tiny_target), "--max-total-tokens", "4096"),
        *("--speculative-algorithm", "EAGLE3", "--speculative-draft-model-path", str(tiny_draft)),
        *gamma_flags(2),
    ]
