"""Does objective ``slo`` help? Tokens per second of requests that meet bounds on TTFT and TPOT, by objective.

An open loop: everybody serves the same requests, so what differs is which of them meet their bounds.
``python -m bench.regret.slo``; about two minutes of one core.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import median

from sglang_nightjar.policy import loader
from sglang_nightjar.sim.builtin import builtin
from sglang_nightjar.sim.loads import Lengths, LoadSettings
from sglang_nightjar.sim.world import simulate

TTFT_MS = 1000.0
#: TPOT bounds, and the loads of either server: requests per second, s.
SERVERS = {
    "demo-cpu": ((25.0, 35.0, 50.0, 80.0), LoadSettings(
        rates=((80.0, 0.3), (80.0, 1.0), (80.0, 2.0)), prompt=Lengths(48, 0.5, 8, 512), output=Lengths(96, 0.6, 8, 512),
    )),
    "h200-8b": ((4.0, 6.0, 8.0, 12.0), LoadSettings(
        rates=((15.0, 10.0), (15.0, 60.0), (15.0, 100.0)), prompt=Lengths(200, 0.8, 16, 2000),
        output=Lengths(200, 0.7, 8, 1500),
    )),
}  # fmt: skip


def policies(tpot_ms: float) -> dict[str, tuple[str, dict[str, object]]]:
    """What is compared."""
    return {
        "off": ("off", {}),
        "static 1": ("static", {"gamma": 1}),
        "static 3": ("static", {"gamma": 3}),
        "model, throughput": ("model", {}),
        "model, latency": ("model", {"objective": "latency"}),
        "model, slo": ("model", {"objective": "slo", "ttft_ms": TTFT_MS, "tpot_ms": tpot_ms}),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    names = list(policies(1.0))
    lines = [
        "| server, TPOT bound | " + " | ".join(names) + " | slo against throughput, by seed |",
        "| --- |" + " --- |" * (len(names) + 1),
    ]
    for server, (bounds, load) in SERVERS.items():
        setup = builtin(server)
        for tpot_ms in bounds:
            rates = {}
            for name, (policy, params) in policies(tpot_ms).items():
                runs = [
                    simulate(
                        setup, load, loader.make(policy, None, params, seed), seed, ttft_ms=TTFT_MS, tpot_ms=tpot_ms
                    )
                    for seed in range(args.seeds)
                ]
                rates[name] = [run.within / run.seconds for run in runs]
            gains = [a / b - 1 if b else 0.0 for a, b in zip(rates[names[-1]], rates[names[3]], strict=True)]
            cells = " | ".join(f"{median(rates[name]):.1f}" for name in names)
            spread = f"{median(gains):+.1%} ({min(gains):+.1%} to {max(gains):+.1%})"
            lines.append(f"| {server}, {tpot_ms:g} ms | {cells} | {spread} |")
            print(lines[-1], flush=True)
    (args.out / "slo.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
