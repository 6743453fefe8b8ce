"""Many clients at once, many of whom hang up. With a γ that changes all the time: test_control_loop.py."""

import pytest
from helpers.hang_ups import hang_ups
from helpers.serving import Server

pytestmark = pytest.mark.server


def test_64_clients_that_hang_up(server: Server) -> None:
    hang_ups(server)
