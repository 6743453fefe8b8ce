"""How many schedulers does one policy process serve on one core? See README.md."""

import argparse
import json
import math
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import zmq

from bench.provenance import provenance
from sglang_nightjar.core.messages import Hello, Plan, Request, Telemetry, TelemetryBatch, make_sender_id
from sglang_nightjar.core.wire import decode, encode
from sglang_nightjar.policy.endpoint import connect

CANDIDATES = (0, 1, 2, 3, 5)
#: Seconds between two looks at the sockets.
_PAUSE = 0.00005
HERE = Path(__file__).parent


class Load:
    """Schedulers in one process: their sockets, and how long each plan took to come.

    A plan says which record it answers (``echo_ns``, when that was sent). Its turnaround ends when it is read, so what
    this process takes to get round to it counts, too: at most ``gaps_ms``, the times between two looks at the sockets.
    """

    def __init__(self, endpoint: str, schedulers: int) -> None:
        context = zmq.Context.instance()
        self.sockets = [connect(context, endpoint) for _ in range(schedulers)]
        self.senders = [make_sender_id(f"server-{index % 8}", f"dp{index // 8}") for index in range(schedulers)]
        self.seqs = [1] * schedulers
        self.plans: list[Plan | None] = [None] * schedulers
        self.turnarounds_ms: list[float] = []
        self.news_ms: list[float] = []
        self.gaps_ms: list[float] = []
        self._looked_ns = 0
        self.measuring = False
        #: Records that found the queue full; an agent would send them with the next one.
        self.unsent = 0
        self.random = random.Random(0)
        self.poller = zmq.Poller()
        for socket in self.sockets:
            self.poller.register(socket, zmq.POLLIN)

    def hello(self) -> None:
        for index, (socket, sender) in enumerate(zip(self.sockets, self.senders, strict=True)):
            socket.poll(10_000, zmq.POLLOUT)
            hello = Hello(
                sender, 1, f"server-{index % 8}", index // 8, 8, 1, "target", "draft", "bench", CANDIDATES, 3, 64,
                1_000_000, 1_100_000, 10**9,
            )  # fmt: skip
            socket.send(encode(hello), zmq.DONTWAIT)
        while None in self.plans:
            self.receive(100)

    def look(self, index: int, iteration: int, count: int) -> None:
        """One look of a scheduler's agent: a frame with its last ``count`` iterations."""
        records = tuple(self.record(index, iteration + i) for i in range(count))
        self.seqs[index] += 1
        try:
            self.sockets[index].send(
                encode(TelemetryBatch(self.senders[index], self.seqs[index], records)), zmq.DONTWAIT
            )
        except zmq.Again:
            self.unsent += count

    def record(self, index: int, iteration: int) -> Telemetry:
        """One decode iteration of one scheduler: the batch size wanders, so policies have to decide."""
        plan = self.plans[index]
        assert plan is not None
        size = 1 + (index * 7 + iteration // 40) % 48
        gamma = plan.gamma_for(size)
        accepted, left = [], size
        for _ in range(gamma):
            left = int(left * 0.7)
            accepted.append(left)
        took = int(1e6 * max(1.0, size * (gamma + 1) / 32) * self.random.uniform(0.9, 1.1))
        return Telemetry(
            iteration, time.monotonic_ns(), took, size, gamma, size + sum(accepted), size * 900, 0, 3, 2_000, size,
            size * 900, 1_000_000, 0, 0, 0, 0, 1, plan.plan_id, size * (gamma + 1), tuple(accepted),
        )  # fmt: skip

    def receive(self, timeout_ms: int = 0) -> None:
        now = time.monotonic_ns()
        if self.measuring:
            self.gaps_ms.append((now - self._looked_ns) / 1e6)
        self._looked_ns = now
        for socket, _ in self.poller.poll(timeout_ms):
            index = self.sockets.index(socket)
            while True:
                try:
                    message = decode(socket.recv(zmq.DONTWAIT))
                except zmq.Again:
                    break
                if isinstance(message, Plan):
                    old, self.plans[index] = self.plans[index], message
                    if self.measuring and message.echo_ns:
                        took = (time.monotonic_ns() - message.echo_ns) / 1e6
                        self.turnarounds_ms.append(took)
                        if old is None or old.plan_id != message.plan_id:
                            self.news_ms.append(took)

    def run(self, rate: float, seconds: float, count: int) -> tuple[int, float]:
        """``rate`` iterations a second and scheduler, ``count`` a frame; returns records sent, and seconds.

        The schedulers' frames are spread evenly over time.
        """
        schedulers, sent, began = len(self.sockets), 0, time.monotonic()
        total = int(rate / count * seconds * schedulers)
        while sent < total:
            due = min(total, int((time.monotonic() - began) * rate / count * schedulers))
            while sent < due:
                self.look(sent % schedulers, 1 + sent // schedulers * count, count)
                sent += 1
                if sent % 8 == 0:
                    self.receive()
            self.receive()
            # ZMQ's thread, which sends, shares this core: without a pause it waits for the scheduler's next tick.
            time.sleep(_PAUSE)
        return sent * count, time.monotonic() - began

    def status(self) -> dict:
        self.seqs[0] += 1
        self.sockets[0].send(encode(Request(self.senders[0], self.seqs[0], "status")))
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            self.sockets[0].poll(1000)
            try:
                message = decode(self.sockets[0].recv(zmq.DONTWAIT), 1 << 22)
            except zmq.Again:
                continue
            if not isinstance(message, Plan):
                return message.body
        raise TimeoutError("no status within 20 s")


def cpu_seconds(pid: int) -> float:
    """CPU time of a process and its children that are alive."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    total = 0.0
    for each in (pid, *map(int, children)):
        fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
        total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def quantile(values: list[float], share: float) -> float:
    """NaN for nothing: a policy may never change its mind."""
    ordered = sorted(values)
    return math.nan if not ordered else ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def measure(args: argparse.Namespace, schedulers: int, folder: Path) -> dict:
    """One run: a fresh policy process pinned to core 0, the load on the other cores."""
    endpoint = f"ipc://{folder}/policy"
    flags = ["--endpoint", endpoint, "--policy", args.policy, "--log-level", "warning"]
    flags += ["--log", str(folder / "decisions.jsonl")] if args.log else []
    process = subprocess.Popen(["taskset", "-c", "0", sys.executable, "-m", "sglang_nightjar.policy", *flags])
    try:
        load = Load(endpoint, schedulers)
        load.hello()
        load.run(args.rate, 2.0, args.records)
        time.sleep(0.5)
        before, used = load.status(), cpu_seconds(process.pid)
        # What came since the warm-up was not read for half a second; that is no turnaround.
        load.receive()
        load.measuring, load.unsent = True, 0
        busy = time.process_time()
        sent, took = load.run(args.rate, args.seconds, args.records)
        busy = time.process_time() - busy
        used = cpu_seconds(process.pid) - used
        load.measuring = False
        time.sleep(0.5)
        after = load.status()
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)
    counted = {key: after["counters"][key] - before["counters"][key] for key in after["counters"]}
    turnarounds, news = load.turnarounds_ms, load.news_ms
    return {
        "schedulers": schedulers,
        "records_a_frame": args.records,
        "rate_wanted": args.rate * schedulers,
        "rate_sent": sent / took,
        "sent": sent,
        "unsent": load.unsent,
        "received": counted["records"],
        "seen_by_policy": after["policy"]["records"] - before["policy"]["records"],
        "dropped": counted["backlog_dropped"] + counted["log_dropped"] + counted["unroutable"],
        "refused": sum(counted[kind] for kind in ("malformed", "oversized", "version", "replayed")),
        "core_share": used / took,
        "plans": len(news),
        "answers": len(turnarounds),
        "turnaround_ms": {str(q): quantile(turnarounds, q) for q in (0.5, 0.9, 0.99, 0.999)},
        "new_plan_ms": {str(q): quantile(news, q) for q in (0.5, 0.9, 0.99, 0.999)},
        "median_ms": statistics.median(turnarounds),
        "look_gap_ms": {str(q): quantile(load.gaps_ms, q) for q in (0.5, 0.9, 0.99, 0.999)},
        "load_core_share": busy / took,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--schedulers", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--rate", type=float, default=300.0, help="iterations a second and scheduler")
    parser.add_argument(
        "--records", type=int, default=3, help="iterations a frame: an agent looks every 10 ms, so 3 at 300 a second"
    )
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--policy", default="nightjar")
    parser.add_argument("--log", action="store_true", help="with the decision log of every record")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "results.json")
    args = parser.parse_args()
    if len(os.sched_getaffinity(0)) > 1:
        os.sched_setaffinity(0, os.sched_getaffinity(0) - {0})
    rows = []
    for schedulers in args.schedulers:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(row := measure(args, schedulers, Path(folder)))
        lost = row["sent"] - row["seen_by_policy"]
        print(
            f"{schedulers:3} schedulers, {row['rate_sent']:.0f} records/s, {lost} lost, core {row['core_share']:.0%}, "
            f"turnaround p50 {row['turnaround_ms']['0.5']:.2f} ms, p99 {row['turnaround_ms']['0.99']:.2f} ms "
            f"({row['plans']} new plans, p99 {row['new_plan_ms']['0.99']:.2f} ms); "
            f"looks {row['look_gap_ms']['0.99']:.2f} ms apart at p99",
            flush=True,
        )
    args.out.parent.mkdir(exist_ok=True)
    args.out.write_text(
        json.dumps({"provenance": provenance(seconds=args.seconds, log=args.log), "rows": rows}, indent=1)
    )


if __name__ == "__main__":
    main()
