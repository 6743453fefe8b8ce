"""One server for all tests of this folder: started with a config and its own policy process, as most users have it.

Every test finds the config's policy in charge, and leaves it so.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.serving import STRICT_CHECKS, Server

ADMIN, USER = "admin-key", "user-key"

CONFIG = "policy: {name: static, params: {gamma: 2}, timeout: 2, memory_mb: 256}\nshadow: [{name: ema}]\n"


@pytest.fixture(scope="package")
def config_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("steered") / "nightjar.yaml"
    file.write_text(CONFIG)
    return file


@pytest.fixture(scope="package")
def steered(eagle_flags: list[str], config_file: Path) -> Iterator[Server]:
    flags = [*eagle_flags, "--nightjar-config", str(config_file), "--enable-metrics"]
    flags += ["--admin-api-key", ADMIN, "--api-key", USER]
    with Server(flags, config_file.with_name("log"), key=USER, admin_key=ADMIN, **STRICT_CHECKS) as server:
        server.generate("Once upon a time", max_new_tokens=32, ignore_eos=True)
        yield server
