"""An agent beside the policy process that a test file starts as its ``process``."""

from collections.abc import Iterator

import pytest
from helpers.policy_peers import Peer, PolicyProcess


@pytest.fixture
def agent(process: PolicyProcess) -> Iterator[Peer]:
    """It has said hello and has its first plan."""
    peer = Peer(process.endpoint)
    peer.hello()
    peer.plan(20)
    yield peer
    peer.close()
