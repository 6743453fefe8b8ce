"""Options and fixtures of the whole suite."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.serving import STRICT_CHECKS, Server, gamma_flags

from sglang_nightjar.cpu.bootstrap import prepare_process

# Before any test module imports sglang or transformers.
prepare_process()
# What one test's policy has learnt must not decide in another.
os.environ["NIGHTJAR_STATE"] = "none"

OTHER_MARKERS = ("server", "gpu")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("nightjar")
    group.addoption("--target", help="folder of the target model (default: the demo pair's)")
    group.addoption("--draft", help="folder of its draft (default: the demo pair's)")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if not any(item.get_closest_marker(name) for name in OTHER_MARKERS):
            item.add_marker("cpu")
    # What is quick to fail comes first.
    items.sort(key=lambda item: item.get_closest_marker("server") is not None)


@pytest.fixture(scope="session")
def target(request: pytest.FixtureRequest) -> Path:
    """Folder of the target model."""
    from sglang_nightjar.demo.pair import ensure_pair

    given = request.config.getoption("--target")
    return Path(given) if given else ensure_pair().target


@pytest.fixture(scope="session")
def draft(request: pytest.FixtureRequest) -> Path:
    """Folder of the draft model."""
    from sglang_nightjar.demo.pair import ensure_pair

    given = request.config.getoption("--draft")
    return Path(given) if given else ensure_pair().draft


@pytest.fixture(scope="session")
def plain_flags(target: Path) -> list[str]:
    """Server flags for the target without speculation. Two servers at a time must fit into 8 GB."""
    return ["--model-path", str(target), "--max-total-tokens", "16384"]


@pytest.fixture(scope="session")
def eagle_flags(plain_flags: list[str], draft: Path) -> list[str]:
    """Server flags for the pair, without a choice of γ."""
    return [*plain_flags, "--speculative-algorithm", "EAGLE3", "--speculative-draft-model-path", str(draft)]


@pytest.fixture(scope="session")
def server(eagle_flags: list[str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The server that most server tests share: EAGLE-3 at γ=3, and SGLang's strict memory checks on all the time."""
    # A policy might choose not to speculate, and then these tests would look at nothing.
    flags = [*eagle_flags, *gamma_flags(3), "--nightjar-policy", "off"]
    log = tmp_path_factory.mktemp("server") / "server.log"
    with Server(flags, log, **STRICT_CHECKS) as running:
        yield running
