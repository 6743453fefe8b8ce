"""``sglang.Engine`` inside a program, after ``import sglang_nightjar``, which needs no setting.

Each case is a process of its own: shutting an engine down ends every child of its process.
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.serving import alive, clean_environment

pytestmark = pytest.mark.server

PROGRAM = """
import sglang_nightjar
import sglang as sgl
from sglang_nightjar.supervise import policy_process

def main():
    engine = sgl.Engine(
        model_path={target!r}, speculative_algorithm="EAGLE3", speculative_draft_model_path={draft!r}
    )
    answer = engine.generate("The capital of France is", {{"temperature": 0, "max_new_tokens": 8}})
    print("TEXT", answer["text"].split()[0])
    print("VERIFIED", answer["meta_info"]["spec_verify_ct"] > 0)
    stream = engine.generate("One, two,", {{"temperature": 0, "max_new_tokens": 8}}, stream=True)
    print("CHUNKS", len(list(stream)) > 1)
    batch = engine.generate(["One, two,", "Red, green,"], {{"temperature": 0, "max_new_tokens": 4}})
    print("BATCH", len(batch))
    args = engine.server_args
    print("SETTINGS", args.page_size, args.max_running_requests is not None)
    setup = policy_process.current()
    folder = setup.endpoint.removeprefix("ipc://").rpartition("/")[0]
    rank = engine.get_server_info()["internal_states"][0]["nightjar"]
    print("POLICY", setup.policy, rank["source"], rank["gamma"], setup.supervisor.pid, folder, flush=True)
    engine.shutdown()
    print("DONE", policy_process.current())

if __name__ == "__main__":
    main()
"""


@pytest.mark.parametrize("how", ["script", "without a file"])
def test_engine(how: str, target: Path, draft: Path, tmp_path: Path) -> None:
    program = PROGRAM.format(target=str(target), draft=str(draft))
    command = [sys.executable, "-c", program]
    if how == "script":
        (tmp_path / "program.py").write_text(program)
        command = [sys.executable, str(tmp_path / "program.py")]
    (tmp_path / "nightjar.yaml").write_text("policy: {name: static, params: {gamma: 2}}\n")
    settings = {"NIGHTJAR_CONFIG": str(tmp_path / "nightjar.yaml")} if how == "script" else {}
    environment = clean_environment(**settings)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    for line in ("TEXT Paris", "VERIFIED True", "CHUNKS True", "BATCH 2", "SETTINGS 1 True", "DONE None"):
        assert line in done.stdout
    # It has a policy process too, which ends with it.
    [(policy, source, gamma, pid, folder)] = re.findall(
        r"^POLICY (\S+) (\S+) (\d) (\d+) (\S+)$", done.stdout, re.MULTILINE
    )
    assert source == "policy"
    assert (policy, gamma) == ("static", "2") if how == "script" else policy == "model"
    assert not alive(int(pid))
    assert not Path(folder).exists()


def test_what_a_cpu_can_not_do_is_said_at_once(target: Path, draft: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("a GPU can")
    program = PROGRAM.format(target=str(target), draft=str(draft)).replace(
        "speculative_algorithm=", "speculative_eagle_topk=4, speculative_algorithm="
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=clean_environment(), capture_output=True, text=True, timeout=120
    )
    assert done.returncode != 0
    assert "ConfigError: speculative_eagle_topk=4: the CPU engine verifies chains, not trees: use 1" in done.stderr
