"""One run: a server made ready, the load, what the server says about it, and whether it counts."""

from __future__ import annotations

import os
import resource
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson

from bench.provenance import ROOT, provenance
from bench.serve import measures, rule, server_side, validity
from bench.serve.arms import ADAPTIVE, Arm
from bench.serve.job import Job, Outcome
from bench.serve.measures import Objectives
from bench.serve.order import Run
from bench.serve.prompts import PromptSource
from bench.serve.reference import Reference
from bench.serve.scenarios import Scenario, warm_up
from bench.serve.server_side import Counters, LogMark
from bench.serve.servers import Fleet, Server, ServerFault
from bench.serve.settings import Settings, make_job
from sglang_nightjar.observe.client import Client


@dataclass
class Measurement:
    """Makes runs.

    Attributes:
        reference: judges answers; None where they are not checked.
        around: a command to run each load under, such as ``taskset -c 3``.
    """

    settings: Settings
    source: PromptSource
    fleet: Fleet
    reference: Reference | None
    around: str = ""

    def make(self, run: Run, scenario: Scenario) -> dict[str, Any]:
        """The run's result, as JSON. Raises ServerFault, ServerError or OSError if a server did not play along, and
        KeyboardInterrupt.
        """
        arm = run.arm
        server = self.fleet.get(arm.server)
        key = server.key or ""
        self.fleet.prepare(server, arm, lambda: self._warm_up(server.url, key))
        job = make_job(scenario, run.repetition, self.settings, self.source, server.url, key)

        log = self.fleet.decision_log(arm.server)
        mark = LogMark.end_of(log) if log else None
        usage, counters = self.fleet.usage(server), self._counters(server) if arm.policy else None
        began, generators_s = time.monotonic(), _children_cpu_s()
        outcome = self._generate(job, self.around)
        if (code := server.process.poll()) is not None:
            crash = validity.Fault("arm", f"the server ended with {code} under the load: {server.tail(5)}")
            seen = {"load": server_side.from_samples(outcome.samples), "processes": {}}
            return self._result(run, scenario, job, outcome, seen, [crash, *validity.of_answers(job, outcome.answers)])
        ended = self.fleet.usage(server)
        others_s = max(0.0, ended.others_since(usage) - (_children_cpu_s() - generators_s))
        seconds = time.monotonic() - began
        after = self._counters(server) if arm.policy else None
        time.sleep(0.5 if mark else 0)  # The log is written every 0.2 s.

        faults = validity.of_answers(job, outcome.answers) + validity.of_generator(job, outcome)
        idle_s = ended.idle_since(usage)
        faults += validity.of_machine(others_s, idle_s, seconds, os.cpu_count() or 1)
        faults += validity.of_capacity(self.fleet.wanted_capacity(arm.server), self.fleet.capacity(server))
        side: dict[str, Any] = {
            "load": server_side.from_samples(outcome.samples),
            "processes": ended.since(usage),
            "others_cpu_s": others_s,
            "idle_servers_cpu_s": idle_s,
        }
        if counters is not None and after is not None:
            side["counters"] = after.since(counters)
            faults += validity.of_policy(str(_policy_name(arm.policy, counters)), after.policy, side["counters"])
        if mark is not None:
            side["log"] = server_side.from_log(list(mark.lines()), outcome.began, outcome.wall_s)
        if arm.server == ADAPTIVE:
            candidates = rule.ranges(self.fleet.models.flags)
            side["log"] = rule.over_time(server.log, candidates, outcome.samples, outcome.began, outcome.wall_s)
        if self.reference is not None:
            faults += validity.of_texts(self.reference.wrong(job, outcome.answers))
        return self._result(run, scenario, job, outcome, side, faults)

    def _result(
        self,
        run: Run,
        scenario: Scenario,
        job: Job,
        outcome: Outcome,
        side: dict[str, Any],
        faults: list[validity.Fault],
    ) -> dict[str, Any]:
        answers = outcome.answers
        objectives = Objectives(self.settings.slo_ttft_s, self.settings.slo_tpot_s)
        figures = measures.figures(answers, scenario.phases, objectives)
        return {
            "run": run.name,
            "scenario": run.scenario,
            "arm": run.arm.name,
            "label": run.arm.label,
            "server": run.arm.server,
            "repetition": run.repetition,
            "open_loop": scenario.is_open,
            "phases": [asdict(phase) for phase in scenario.phases],
            "provenance": provenance(),
            "began": outcome.began,
            "faults": [asdict(fault) for fault in faults],
            "whole": figures["whole"] | _totals(run.arm, answers, outcome),
            "by_phase": figures["by_phase"],
            "quantiles": {
                "ttft_s": measures.quantiles(answers, measures.ttft),
                "tpot_s": measures.quantiles(answers, measures.tpot),
                "latency_s": measures.quantiles(answers, measures.latency),
            },
            "seconds": measures.seconds_of(answers, outcome.wall_s),
            "generator": {
                "cpu_s": outcome.cpu_s,
                "late_s": measures.summary([a.sent - a.due for a in answers]),
                "worst_lag_s": outcome.worst_lag,
                "wall_s": outcome.wall_s,
            },
            "server_side": side,
            "answers": [asdict(answer) for answer in answers],
        }

    def _counters(self, server: Server) -> Counters:
        return Counters.of(Client(server.url, server.key).status())

    def _warm_up(self, url: str, key: str) -> None:
        """The same one every time."""
        if self.settings.warm_up_s <= 0:
            return
        scenario = warm_up(self.settings.warm_up_s, self.settings.max_running_requests)
        self._generate(make_job(scenario, 0, self.settings, self.source, url, key), "")

    def _generate(self, job: Job, around: str) -> Outcome:
        """Run the generator. Raises KeyboardInterrupt if it was interrupted, and ServerFault if it failed."""
        with tempfile.TemporaryDirectory() as folder:
            given, made = Path(folder) / "job.json", Path(folder) / "outcome.json"
            job.write(given)
            command = [*shlex.split(around), sys.executable, "-m", "bench.serve.generator", str(given), str(made)]
            code = subprocess.run(command, cwd=ROOT, check=False).returncode
            if code in (130, -2):
                raise KeyboardInterrupt
            if code != 0 or not made.exists():
                raise ServerFault(f"the load generator ended with {code}: {shlex.join(command)}")
            return Outcome.from_json(orjson.loads(made.read_bytes()))


def _children_cpu_s() -> float:
    """CPU time of the load generators so far, their start included."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _totals(arm: Arm, answers: Sequence[Any], outcome: Outcome) -> dict[str, Any]:
    good = [a for a in answers if not a.error]
    steps, proposed = sum(a.verify_steps for a in good), sum(a.proposed for a in good)
    return {
        "sent": len(answers),
        "failed": len(answers) - len(good),
        "tokens": sum(len(a.tokens) for a in good),
        "cached_prompt_tokens": sum(a.cached for a in good),
        "verify_steps": steps,
        "proposed": proposed,
        "accepted": sum(a.accepted for a in good),
        # γ as the requests saw it: what was proposed for them in a verify step. With its own rule SGLang counts as if γ
        # were always that of the start.
        "gamma_per_step": proposed / steps if steps and arm.server != ADAPTIVE else None,
        "retractions": sum(a.retractions for a in good),
        "until_last_s": outcome.wall_s,
    }


def _policy_name(policy: dict[str, Any] | None, counters: Counters) -> str:
    """The name that the policy has in status; one of a file says its own."""
    return str(policy["name"]) if policy and "name" in policy else counters.policy
