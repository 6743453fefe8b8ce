"""Programs in SGLang's frontend language run unchanged."""

import subprocess
import sys

import pytest
import sglang as sgl
from helpers.serving import Server, clean_environment, free_port

pytestmark = pytest.mark.server


@sgl.function
def multi_turn(s, first, second):
    s += sgl.user(first)
    s += sgl.assistant(sgl.gen("one", max_tokens=16, temperature=0, stop="\n"))
    s += sgl.user(second)
    s += sgl.assistant(sgl.gen("two", max_tokens=16, temperature=0, stop="\n"))


KINDS = [" animal", " country", " number"]


@sgl.function
def choose(s, statement):
    s += statement + " So it is about a"
    s += sgl.select("kind", KINDS)


@sgl.function
def tips(s):
    s += "Two tips for staying healthy: eat well and sleep enough.\n"
    forks = s.fork(2)
    for i, fork in enumerate(forks):
        fork += f"Tip {i + 1} in detail:"
        fork += sgl.gen("detail", max_tokens=12, temperature=0)
    s += "Tip 1:" + forks[0]["detail"] + "\nTip 2:" + forks[1]["detail"] + "\nIn short:"
    s += sgl.gen("summary", max_tokens=12, temperature=0)


@pytest.fixture(scope="module", autouse=True)
def backend(server: Server):
    sgl.set_default_backend(sgl.RuntimeEndpoint(server.url))
    yield
    sgl.set_default_backend(None)


def test_gen_over_two_turns(server: Server) -> None:
    """The second answer continues a prompt that has the first one in it."""
    state = multi_turn.run(first="What is the capital of France?", second="And of Italy?")
    assert "Paris" in state["one"]
    prompt = state.text()[: state.text().rindex(state["two"])]
    assert state["one"] in prompt
    assert server.generate(prompt, max_new_tokens=16, stop="\n")["text"] == state["two"]


def test_select(server: Server) -> None:
    """The choice is the one that the model finds most likely, whatever the statement."""
    statements = ["The lion hunts at night.", "Norway has many fjords.", "Seven is odd and prime."]
    states = choose.run_batch([{"statement": statement} for statement in statements])
    for statement, state in zip(statements, states, strict=True):
        prompt = statement + " So it is about a"
        scores = [
            server.generate(prompt + kind, max_new_tokens=1, return_logprob=True, logprob_start_len=0)["meta_info"]
            for kind in KINDS
        ]
        # Every choice is one token, the last of its prompt: [logprob, id, text].
        likely = max(range(len(KINDS)), key=lambda i: scores[i]["input_token_logprobs"][-1][0])
        assert state["kind"] == KINDS[likely]


def test_fork() -> None:
    state = tips.run()
    assert state["summary"]
    assert state.text().count("Tip ") == 2


def test_stream() -> None:
    state = multi_turn.run(first="What is the capital of France?", second="And of Italy?", stream=True)
    pieces = list(state.text_iter(var_name="one"))
    assert "".join(pieces) == state["one"]
    assert len(pieces) > 1


RUNTIME_PROGRAM = """
import sglang_nightjar
import sglang as sgl

@sgl.function
def capital(s, country):
    s += "The capital of " + country + " is"
    s += sgl.gen("city", max_tokens=3, temperature=0)

runtime = sgl.Runtime(
    model_path={target!r}, speculative_algorithm="EAGLE3", speculative_draft_model_path={draft!r}, port={port}
)
sgl.set_default_backend(runtime)
print("CITY", capital.run(country="France")["city"])
info = sgl.get_server_info()
print("SPECULATION", info["speculative_algorithm"], info["speculative_num_steps"])
runtime.shutdown()
"""


def test_runtime(target, draft) -> None:
    """``sgl.Runtime`` from a program without a main file, as in a REPL: the server's process must prepare itself."""
    program = RUNTIME_PROGRAM.format(target=str(target), draft=str(draft), port=free_port())
    done = subprocess.run(
        [sys.executable, "-c", program], env=clean_environment(), capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "CITY  Paris" in done.stdout
    # A policy chooses γ, and SGLang is started with the largest that it may choose.
    assert "SPECULATION EAGLE3 5" in done.stdout
