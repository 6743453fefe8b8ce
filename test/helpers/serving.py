"""Start the real server as a user does, in a process of its own, and talk to it."""

import ctypes
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

LAUNCHER = "sglang_nightjar.launch_server"
# A machine with other work on it takes minutes to import SGLang three times.
START_TIMEOUT = 600.0

# A leaked or doubly used KV slot raises in the scheduler, at once, instead of being logged when it is next idle.
STRICT_CHECKS = {
    "SGLANG_ENABLE_STRICT_MEM_CHECK_DURING_BUSY": "1",
    "SGLANG_ENABLE_STRICT_MEM_CHECK_DURING_IDLE": "1",
}


def free_port() -> int:
    """A port that nobody listens on now, and that Linux gives to nobody who doesn't name it: those begin at 32768."""
    while True:
        port = random.randrange(20_000, 32_768)
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return port


def clean_environment(**extra: str) -> dict[str, str]:
    """The environment of a user who has not turned Nightjar on (pytest's own process may have)."""
    ours = ("NIGHTJAR_ACTIVE", "NIGHTJAR_STRICT", "NIGHTJAR_CONFIG", "NIGHTJAR_POLICY", "NIGHTJAR_POLICY_ENDPOINT")
    ours += ("NIGHTJAR_ENDPOINT", "NIGHTJAR_SERVER", "SGLANG_USE_CPU_ENGINE")
    return {name: value for name, value in os.environ.items() if name not in ours} | extra


def run_launcher(
    *flags: str, timeout: float = 120.0, module: str = LAUNCHER, **env: str
) -> subprocess.CompletedProcess[str]:
    """Run the launcher until it ends by itself; for starts that must fail."""
    command = [sys.executable, "-m", module, *flags]
    return subprocess.run(command, env=clean_environment(**env), capture_output=True, text=True, timeout=timeout)


class Server:
    """A running server; use it in a ``with`` block.

    Attributes:
        url: its root, without a slash at the end.
        log: the file that it writes to.
        key: API key that ``get``, ``post`` and `Load` send, if any.
        admin_key: the one that `put_policy` sends.
    """

    def __init__(
        self,
        flags: Sequence[str],
        log: Path,
        key: str | None = None,
        admin_key: str | None = None,
        port: int | None = None,
        **env: str,
    ):
        port = port or free_port()
        self.key, self.admin_key = key, admin_key
        self.url = f"http://127.0.0.1:{port}"
        self.log = log
        command = [sys.executable, "-m", LAUNCHER, "--port", str(port), *flags]
        with open(log, "w") as output:
            self.process = subprocess.Popen(
                command,
                env=clean_environment(**env),
                stdout=output,
                stderr=output,
                start_new_session=True,
                preexec_fn=_end_with_parent,
            )

    def __enter__(self) -> "Server":
        deadline = time.monotonic() + START_TIMEOUT
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError(f"the server ended with {self.process.returncode}:\n{self.tail()}")
            try:
                urllib.request.urlopen(self.url + "/health", timeout=5).close()
                return self
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                time.sleep(0.5)
        self.kill()
        raise TimeoutError(f"the server was not ready after {START_TIMEOUT:.0f} s:\n{self.tail()}")

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        """Ends it as an operator would; whatever it served, it must end well."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                code = self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.kill()
                raise
            assert code == 0 or error is not None, f"it ended with {code}:\n{self.tail()}"

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(30)

    def tail(self, lines: int = 30) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def post(self, path: str, body: dict[str, Any], timeout: float = 300.0) -> Any:
        """POST JSON and return the JSON answer. Raises urllib.error.HTTPError for a status of 400 or more."""
        return self._ask(path, timeout, json.dumps(body).encode())

    def get(self, path: str) -> Any:
        return self._ask(path, 60)

    def ranks(self) -> list[dict[str, Any]]:
        """What Nightjar says about each scheduler, as in ``ranks`` of its status; nothing with the policy ``off``."""
        return [state["nightjar"] for state in self.get("/server_info")["internal_states"] if "nightjar" in state]

    def put_policy(self, body: Any, *keys: str | None) -> tuple[int, dict[str, Any]]:
        """PUT /nightjar/policy with another key than the admin's, if one is given; ``body`` is JSON, or bytes.

        Returns the HTTP status and the answer, whatever they are.
        """
        [key] = keys or [self.admin_key]
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(self.url + "/nightjar/policy", data, headers, method="PUT")
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def headers(self) -> dict[str, str]:
        """Those of a JSON request."""
        return {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self.key}"} if self.key else {})

    def _ask(self, path: str, timeout: float, data: bytes | None = None) -> Any:
        request = urllib.request.Request(self.url + path, data, self.headers())
        with urllib.request.urlopen(request, timeout=timeout) as response:
            return json.load(response)

    def generate(self, text: Any, **params: Any) -> Any:
        """POST /generate, greedy unless ``temperature`` is given. For a list of texts the answer is a list."""
        options = {name: params.pop(name) for name in ("return_logprob", "logprob_start_len") if name in params}
        return self.post("/generate", {"text": text, "sampling_params": {"temperature": 0, **params}, **options})

    def children(self) -> list[int]:
        """Ids of the processes that it started, itself left out."""
        import psutil

        return [child.pid for child in psutil.Process(self.process.pid).children(recursive=True)]


def _end_with_parent() -> None:
    """Ask Linux for a SIGTERM when the tests' process ends, however it ends."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)


def alive(pid: int) -> bool:
    """Whether the process runs (a zombie does not)."""
    import psutil

    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def gamma_flags(gamma: int) -> list[str]:
    """Server flags for a fixed γ."""
    return [
        *("--speculative-num-steps", str(gamma)),
        *("--speculative-eagle-topk", "1"),
        *("--speculative-num-draft-tokens", str(gamma + 1)),
    ]
