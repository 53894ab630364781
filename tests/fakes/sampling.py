"""Runs the real sampler under the stub driver in a process of its own and brings back all that it said."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from fakes.nvml import run_python

_CHILD = """
import json, os, sys, time
from pathlib import Path
import msgspec
from lorawatch.telemetry.driver import DriverUnavailable
from lorawatch.telemetry.opening import open_driver
from lorawatch.telemetry.sampler import Sampler

seconds, hz, ask_at = {seconds}, {hz}, {ask_at}
try:
    driver = open_driver()
except DriverUnavailable:
    driver = None
gpus = driver.gpus("h") if driver else []
lines, events, stale, ages = [], [], [], []
sampler = Sampler(gpus, driver, sample_hz=hz, host="h", write=lines.append, on_event=events.append,
                  worker_pids=lambda: [os.getpid()], disk=Path.cwd())
began = time.time()
sampler.start()
asked = None
while time.time() - began < seconds:
    time.sleep(0.05)
    stale.append(sampler.stale_s())
    ages.append(max((g.fast_age_s or 0.0 for g in sampler.latest().gpus), default=0.0))
    if ask_at is not None and asked is None and time.time() - began >= ask_at:
        asked = time.time()
        sampler.request_energy()
stopping = time.monotonic()
ended = sampler.stop(2.0)
stop_s = time.monotonic() - stopping
at_stop = len(lines)
time.sleep({linger})
latest = sampler.latest()
timing = sampler.timing
print(json.dumps(dict(
    began=began, asked=asked, ended=ended, stop_s=stop_s, after_stop=len(lines) - at_stop, stale=stale, ages=ages,
    lines=[msgspec.to_builtins(x) for x in lines], events=[msgspec.to_builtins(x) for x in events],
    latest=[dict(gpu=msgspec.to_builtins(g.gpu), values=msgspec.to_builtins(g.values), lost=g.lost,
                 processes=len(g.processes)) for g in latest.gpus],
    ticks=timing.ticks, missed=timing.missed, on_time=timing.on_time)), flush=True)
os._exit(0)  # a thread may still hang in the driver
"""


@dataclass
class Sampled:
    """What came out of the sampler.

    Attributes:
        fast, slow, host: Journal lines as plain data, by the lane that wrote them.
        events: The events.
        more: Everything else the child reports.
    """

    fast: list[dict[str, Any]]
    slow: list[dict[str, Any]]
    host: list[dict[str, Any]]
    events: list[dict[str, Any]]
    more: dict[str, Any]

    def kinds(self) -> list[str]:
        return [e["kind"] for e in self.events]


FAST_KEYS = {
    "power_w",
    "power_average_w",
    "memory_used_bytes",
    "utilization_pct",
    "sm_clock_mhz",
    "event_reasons",
}


def sample(
    env: dict[str, str], seconds: float, *, hz: float = 10, ask_at: float | None = None, linger: float = 0
) -> Sampled:
    """Sample for some seconds; `ask_at` requests an energy reading then, `linger` waits after the stop."""
    code = _CHILD.format(seconds=seconds, hz=hz, ask_at=ask_at, linger=linger)
    more = json.loads(run_python(code, env, timeout=seconds + linger + 60))
    lines = more.pop("lines")
    gpu = [x for x in lines if x["t"] == "gpu"]
    fast = [x for x in gpu if FAST_KEYS & x.keys()]
    slow = [x for x in gpu if not FAST_KEYS & x.keys()]
    return Sampled(fast, slow, [x for x in lines if x["t"] == "host"], more.pop("events"), more)
