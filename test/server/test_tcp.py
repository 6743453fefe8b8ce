"""A policy process on another machine, as far as one machine can show it: over TCP, with keys."""

from pathlib import Path

import pytest
from helpers.policy_peers import PolicyProcess
from helpers.processes import is_steered, policy_processes
from helpers.serving import Server, free_port
from helpers.waiting import eventually

from sglang_nightjar.policy.endpoint import make_keys

pytestmark = pytest.mark.server


def test_plans_arrive_over_tcp(tiny_flags: list[str], tmp_path: Path) -> None:
    make_keys(tmp_path / "keys")
    endpoint = f"tcp://127.0.0.1:{free_port()}"
    link = f"link: {{endpoint: '{endpoint}', keys: {tmp_path / 'keys'}}}\n"
    (tmp_path / "nightjar.yaml").write_text(link)
    static = "policy: {name: static, params: {gamma: 4}}\n"
    flags = [*tiny_flags, "--nightjar-config", str(tmp_path / "nightjar.yaml")]
    with (
        PolicyProcess(tmp_path / "p", config=link + static, endpoint=endpoint) as policy,
        Server(flags, tmp_path / "log") as server,
    ):
        assert policy_processes(server) == []
        eventually(lambda: is_steered(server), 30)
        answer = server.generate("Once upon a time", max_new_tokens=24, ignore_eos=True)["meta_info"]
        assert answer["spec_num_proposed_drafts"] == 4 * answer["spec_verify_ct"]
        status = server.get("/nightjar/status")
        assert (status["policy"]["name"], status["policy"]["endpoint"]) == ("static", endpoint)
        eventually(lambda: server.ranks()[0]["link"]["sent"] > 2)
        policy.kill()
        eventually(lambda: server.ranks()[0]["source"] == "fallback")
        policy.start()
        eventually(lambda: is_steered(server), 30)
