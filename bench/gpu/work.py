"""What the phases do. Each is called in a process of its own (phases.py) with ``put``, which keeps a finding."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

from bench import demo_server
from bench.gpu.phases import Put
from bench.residency.engine import Engine, Router
from sglang_nightjar.demo.pair import ensure_pair

#: γ of the iterations with drafts; the servers have this one and 0.
GAMMA = 3


def mapping(put: Put, on_gpu: bool) -> None:
    """How long elastic memory takes to come and go, and whether a CUDA graph over it outlives that."""
    import torch

    from sglang_nightjar.memory import elastic

    device = torch.device("cuda", 0) if on_gpu else torch.device("cpu")

    def ms(action: Any) -> float:
        began = time.perf_counter()
        action()
        if on_gpu:
            torch.cuda.synchronize()
        return 1e3 * (time.perf_counter() - began)

    if on_gpu:
        torch.zeros(1, device=device)
    rows = []
    for mib in (2, 16, 64, 256):
        nbytes = mib << 20
        buffer = elastic.reserve(nbytes, device)
        host = torch.ones(nbytes, dtype=torch.uint8, pin_memory=on_gpu)
        view = buffer.tensor(torch.uint8, (nbytes,))
        for _ in range(5):
            times = {"map": ms(lambda buffer=buffer, nbytes=nbytes: buffer.commit(nbytes))}
            times["first_write"] = ms(lambda view=view: view.zero_())
            times["copy_from_host"] = ms(lambda view=view, host=host: view.copy_(host, non_blocking=True))
            times["unmap"] = ms(lambda buffer=buffer: buffer.release(0))
            rows.append({"mib": mib, **times})
        buffer.close()
    put("ms", rows)
    if on_gpu:
        put("graph_outlives_unmapping", _graph_outlives_unmapping(device))


def _graph_outlives_unmapping(device: Any) -> bool:
    import torch

    from sglang_nightjar.memory import elastic

    buffer = elastic.reserve(64 << 20, device)
    buffer.commit(64 << 20)
    weights, output = buffer.tensor(torch.float32, (1 << 20,)), torch.zeros(1 << 20, device=device)
    weights.fill_(1.0)
    torch.mul(weights, 2.0, out=output)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        torch.mul(weights, 2.0, out=output)
    buffer.release(0)
    buffer.commit(64 << 20)
    weights.fill_(3.0)
    graph.replay()
    torch.cuda.synchronize()
    return bool((output == 6.0).all())


def lossless(put: Put, folder: Path, url: str, plain_url: str, prompts: int, new_tokens: int) -> None:
    """Greedy texts while the draft goes and comes, against those of a server without speculation.

    In half precision neither is exact, so both are held against the target in float64: by how many logits the token of
    each position misses the best one.
    """
    from sglang_nightjar.cpu.bootstrap import prepare_process

    # Changes nothing with CUDA; on a CPU transformers could not be imported else.
    prepare_process()
    from helpers.lossless import Referee

    referee = Referee(ensure_pair().target)
    asked = referee.prompts()[:prompts]
    plain = _texts(plain_url, asked, new_tokens)
    put("plain_misses", [_worst_miss(referee, *pair) for pair in zip(asked, plain, strict=True)])
    with Router(folder / "policy", repeat_s=0.05) as router:
        router.wait_for_hello(60)
        engine = Engine(router, url)
        engine.go("device")
        got: list[list[list[int]]] = []

        def send() -> None:
            # Five times over, so that all stages of the way are met by some text.
            got.extend(_texts(url, asked, new_tokens) for _ in range(5))

        sender = threading.Thread(target=send, daemon=True)
        sender.start()
        time.sleep(0.2)
        while sender.is_alive():
            engine.turns(1, GAMMA, sender.is_alive)
        put("counters", engine.go("device")["counters"])
    put("texts", len(got) * len(asked))
    put("same_as_plain", sum(a == b for texts in got for a, b in zip(texts, plain, strict=True)))
    # The reference is slow, and most texts are alike.
    distinct = {(i, tuple(tokens)) for texts in got for i, tokens in enumerate(texts)}
    put("misses", [_worst_miss(referee, asked[i], list(tokens)) for i, tokens in sorted(distinct)])


def _texts(url: str, prompts: list[list[int]], new_tokens: int) -> list[list[int]]:
    sampling = {"max_new_tokens": new_tokens, "temperature": 0, "ignore_eos": True}
    body = json.dumps({"input_ids": prompts, "sampling_params": sampling}).encode()
    request = urllib.request.Request(f"{url}/generate", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=300) as response:
        return [answer["output_ids"][:new_tokens] for answer in json.load(response)]


def _worst_miss(referee: Any, prompt: list[int], tokens: list[int]) -> float:
    """By how many logits the worst token of a text is below the target's best at its place."""
    import torch

    logits, _ = referee.logits([*prompt, *tokens[:-1]], last=len(tokens))
    chosen = logits.gather(1, torch.tensor(tokens)[:, None])[:, 0]
    return float((logits.max(dim=1).values - chosen).max())


def memory(put: Put, folder: Path, url: str, on_gpu: bool) -> None:
    """What the draft's going frees and makes room for, on an idle server; the machine's memory beside it."""
    import torch

    def held() -> int:
        free, total = torch.cuda.mem_get_info(0) if on_gpu else (0, 0)
        return total - free

    with Router(folder / "policy", repeat_s=0.05) as router:
        hello = router.wait_for_hello(60)
        engine = Engine(router, url)
        put("settings", _settings(url))
        put("predicted_tokens", hello.kv_tokens_without_draft - hello.kv_tokens)
        put("kv_tokens", hello.kv_tokens)
        # The cache has grown into the freed memory, so on a GPU what is held hardly changes.
        put("found", engine.memory(held))


def _settings(url: str) -> dict[str, Any]:
    """What the figures depend on, as SGLang has resolved it."""
    names = ("attention_backend", "disable_overlap_schedule", "disable_cuda_graph", "dtype", "max_running_requests")
    with urllib.request.urlopen(f"{url}/server_info", timeout=60) as response:
        found = json.load(response)
    return {name: found.get(name) for name in names}


def stalls(put: Put, folder: Path, url: str, batch: int, cycles: int) -> None:
    """How long iterations are while the draft goes and comes, and how many ran from CUDA graphs."""
    with Router(folder / "policy", repeat_s=0.05) as router:
        hello = router.wait_for_hello(60)
        engine = Engine(router, url)
        engine.go("device")
        new_tokens = min(1024, hello.kv_tokens * 3 // 4 // batch - 24)
        put("iterations", engine.cycles(cycles, batch, new_tokens, GAMMA))
        put("batch", batch)
        graphs: dict[str, list[int]] = {}
        for record in router.records():
            graphs.setdefault(f"γ={record.gamma}", []).append(record.cuda_graph)
        put("share_from_graphs", {gamma: sum(flags) / len(flags) for gamma, flags in graphs.items()})
        put("counters", engine.go("device")["counters"])


def switch(put: Put, folder: Path, url: str, key: str, lags: tuple[int, ...], batches: tuple[int, ...]) -> None:
    """C_switch(lag, B), by ``nightjar profile``, with a policy process of the usual kind in charge."""
    from helpers.serving import _end_with_parent

    nightjar = [sys.executable, "-m", "sglang_nightjar.cli"]
    serve = [*nightjar, "policy", "serve", "--endpoint", f"ipc://{folder / 'policy'}"]
    with subprocess.Popen(serve, preexec_fn=_end_with_parent) as process:
        try:
            time.sleep(3)
            words = ["--lags", *map(str, lags), "--batches", *map(str, batches), "--rounds", "3"]
            done = subprocess.run(
                [*nightjar, "profile", "--json", "--url", url, "--key", key, *words],
                capture_output=True,
                text=True,
                preexec_fn=_end_with_parent,
            )
            if done.returncode:
                raise RuntimeError(done.stderr[-2000:])
            put("profile", json.loads(done.stdout))
        finally:
            process.terminate()


def surge(put: Put, folder: Path, url: str, repetitions: int, requests: int, new_tokens: int) -> None:
    """A load that the cache is too small for, with the draft here and away in turn."""
    with Router(folder / "policy", repeat_s=0.05) as router:
        hello = router.wait_for_hello(60)
        engine = Engine(router, url)
        engine.go("device")
        demo_server.generate(url, ["Once upon a time"] * 8, 16, 0.0, True)
        put("extra_tokens", hello.kv_tokens_without_draft - hello.kv_tokens)
        put("requests", requests)
        put("runs", engine.surges(repetitions, requests, new_tokens))
