"""The recorder: starts a run's workers, or takes them over, and records them until the last one has gone."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from lorawatch import interconnect
from lorawatch.adapters import best_of
from lorawatch.errors import LorawatchError, UsageError
from lorawatch.journal import JournalWriter
from lorawatch.launch import torchrun
from lorawatch.launch.placement import Placement
from lorawatch.live import Follower, LiveView, eval_every, is_separate
from lorawatch.masking import mask_output
from lorawatch.paths import host_name
from lorawatch.processes import ProcessId, oom_kills
from lorawatch.recipe import Recipe
from lorawatch.recorder.hang import STEPPING, HangWatch
from lorawatch.recorder.ingesting import Ingesting
from lorawatch.recorder.logs import size_of
from lorawatch.recorder.logs import tail as tail
from lorawatch.recorder.stopping import Stopping
from lorawatch.recorder.workers import Workers
from lorawatch.records import (
    Evaluation,
    Event,
    ExitRecord,
    GpuSample,
    HostSample,
    PhaseChange,
    RankStarted,
    Record,
    Severity,
    Step,
)
from lorawatch.rundir import ENDED, RunDir, RunState, read_json
from lorawatch.sanitize import encodable
from lorawatch.telemetry.sampler import Sampler
from lorawatch.verdict import Evidence, Verdict, judge

if TYPE_CHECKING:
    from lorawatch.telemetry.nvml import Nvml

TICK_S = 0.2
HEARTBEAT_S = 1.0
HISTORY_WAIT_S = 60.0
WORKER_PIDS_EVERY_S = 5.0


class Recorder:
    """Supervises one run. One thread calls `run`; `stop` and `kill` may come from a signal handler.

    Args:
        run: The run's directory, prepared.
        placement: Where the ranks go; None for an own command.
        recipe: The recipe; None for an own command.
        command: The own command as it was typed, which is in no file; None for a recipe, and to adopt.
        nvml: The driver's readings; None on a machine without an NVIDIA driver.
        on_tick: Called every tick and once at the end, for a display.
        on_event: Called for each event, for a display.
    """

    def __init__(
        self,
        run: RunDir,
        *,
        placement: Placement | None = None,
        recipe: Recipe | None = None,
        command: Sequence[str] | None = None,
        nvml: Nvml | None = None,
        on_tick: Callable[[Recorder], None] | None = None,
        on_event: Callable[[Event], None] | None = None,
    ) -> None:
        self.run_dir = run
        self.info = run.info()
        self.state = run.state()
        self.recipe = recipe
        self.history_waits: str | None = None
        """After the end: why the history lacks lines that the journals have, or None."""
        self._placement, self._nvml = placement, nvml
        self._command = command
        self._on_tick = on_tick
        self._show_event = on_event
        self._host = host_name()
        self._host_journal = JournalWriter(run.host_journal(self._host))
        self._events_journal = JournalWriter(run.events_journal)
        self.view = LiveView(self.info.world_size, separate=is_separate(self.info), eval_every=eval_every(self.info))
        self._follower = Follower(run, self.view, skip_host=True)
        self._inbox: deque[Record] = deque()  # what other threads bring; the view and the display belong to this one
        self._ingesting = Ingesting(run, self._inbox.append)
        self._sampler = Sampler(
            self.info.gpus,
            nvml,
            sample_hz=self.info.sample_hz,
            host=self._host,
            write=self._inbox.append,
            on_event=self._inbox.append,
            worker_pids=self._worker_pids,
            disk=run.root,
        )
        self._workers: Workers | None = None
        self._stopping = Stopping(run, self.view, self._say)
        self._heartbeat_at = 0.0
        self._oom_kills = oom_kills()
        self._gpu_lost: list[str] = []
        self._hangs = HangWatch(run, self.view, recipe.launch.hang_timeout_s if recipe else 0.0, self._event)
        self._measuring = False
        # Of earlier attempts nobody is left: a pid that they name may be anybody's today.
        self._first_attempt = self.state.attempt
        self._began_at = time.time()
        self._stepping_since = 0.0
        self._log_begins = 0
        self._pids: list[int] = []
        self._pids_at = -WORKER_PIDS_EVERY_S

    # --- from outside

    def stop(self) -> None:
        """Ask the ranks to stop together at the next step and save; a second call ends them at once.

        Only counts: safe in a signal handler.
        """
        self._stopping.signals += 1

    # --- life

    def run(self) -> RunState:
        """Start the workers and record them until they have ended. Returns the final state.

        Raises:
            MissingDependency: The launcher cannot be started; the run is recorded as failed.
        """
        if self._first_attempt:  # what the journals have so far is the past, for the history and not for the display
            past = {path.name: size_of(path) for path in self.run_dir.journal.glob("rank-*.jsonl")}
            self._follower = Follower(self.run_dir, self.view, skip_host=True, offsets=past)
            self.view.attempt = self._first_attempt
            if best := best_of(self.run_dir):
                self.view.best = Evaluation(
                    attempt=best.attempt, rank=0, step=best.step, ended_at=best.at, loss=best.loss
                )
        self._begin()
        log = self._launcher_log
        self._log_begins = size_of(log)
        try:
            if self.info.own_command:
                if self._command is None:
                    raise UsageError(
                        f"the command of run {self.run_dir.run_id} was given to another recorder and is in no file",
                        hint="start it again: lorawatch --record -- CMD",
                    )
                env = {**os.environ, "LORAWATCH_RUN_DIR": str(self.run_dir.root), "PYTHONUNBUFFERED": "1"}
                process = torchrun.start(list(self._command), env, log)
            else:
                assert self._placement is not None
                assert self.recipe is not None
                command = torchrun.arguments(
                    self.run_dir,
                    self._placement,
                    max_restarts=self.recipe.launch.max_restarts,
                    separate=self.view.separate,
                )
                self.info.command = [encodable(word) for word in command]
                self.run_dir.write_info(self.info)
                env = torchrun.environment(
                    self.run_dir,
                    self._placement,
                    first_attempt=self._first_attempt,
                    resumed_at=self.state.resumed_at,
                )
                env.update(self._interconnect())
                process = torchrun.start(command, env, log)
        except (LorawatchError, OSError) as error:
            self._end(Verdict("failed", "nonzero_exit", str(error), getattr(error, "exit_code", 1)))
            raise
        launcher = ProcessId.of(process.pid) or ProcessId(process.pid, 0, "")  # it may have ended already
        self._workers = Workers(launcher, process)
        self.state.launcher = launcher
        how = f"started again, attempt {self._first_attempt}" if self._first_attempt else "started"
        self._event(
            Event(at=time.time(), kind="started", message=f"{self.info.name} {how}", detail={"pid": process.pid})
        )
        return self._supervise()

    def _interconnect(self) -> dict[str, str]:
        """NCCL's variables for the ranks; says so where gradients take another way than NCCL would choose."""
        assert self.recipe is not None
        assert self._placement is not None
        uuids = self._placement.gpu_uuids
        linked = self._nvml is not None and len(uuids) > 1 and self._nvml.linked(uuids)
        found = interconnect.environment(self.recipe, len(uuids), linked=linked, base=os.environ)
        if found:
            words = (
                f"gradients go through the host's memory, so that NVLink sleeps (launch.p2p: {self.recipe.launch.p2p})"
            )
            self._say("p2p", words)
        return found

    def adopt(self) -> RunState:
        """Take over the workers of a run whose recorder is gone, and record them until they have ended.

        Raises:
            LorawatchError: The run has ended, or its recorder lives.
        """
        before = self.state
        if before.state in ENDED:
            raise LorawatchError(
                f"run {self.run_dir.run_id} has ended ({before.state})", hint="lorawatch show tells how"
            )
        if before.recorder is not None and before.recorder.alive():
            raise LorawatchError(
                f"run {self.run_dir.run_id} has a living recorder (pid {before.recorder.pid})",
                hint="there is nothing to adopt",
            )
        if before.launcher is None:
            raise LorawatchError(
                f"run {self.run_dir.run_id} never started its workers", hint="start it anew: lorawatch --record"
            )
        self._workers = Workers(before.launcher, None, before.ranks)
        self._begin()
        self._say("adopted", "a new recorder took the run over")
        return self._supervise()

    def _begin(self) -> None:
        self.state.recorder = ProcessId.of(os.getpid())
        if self.state.started_at is None:
            self.state.started_at = time.time()
        if self.state.state == "queued":
            self.state.state = "starting"
        self._write_state()
        self._sampler.start()
        self._ingesting.start()

    def _supervise(self) -> RunState:
        assert self._workers is not None
        workers = self._workers
        if self.info.own_command and self.state.state == "starting":
            self.state.state = "running"
        next_tick = time.monotonic()
        while workers.launcher_alive():
            self._tick()
            next_tick += TICK_S
            delay = next_tick - time.monotonic()
            if delay > 0:
                time.sleep(delay)
            else:
                next_tick = time.monotonic()
        # The agent's ranks die with it; whoever is left after a moment is an orphan.
        if not workers.wait_gone(10.0, self._tick):
            self._say("orphans", "ranks outlived their launcher and were ended", "warning")
            workers.kill()
        self._tick()
        verdict = judge(self._evidence())
        return self._end(verdict)

    def _end(self, verdict: Verdict) -> RunState:
        self._sampler.stop(timeout_s=2.0)
        self._take_inbox()
        if verdict.message is not None:  # often a line of the command's own output
            verdict = replace(verdict, message=mask_output(verdict.message, self._command or ()))
        state = self.state
        if state.state not in ENDED:
            self._ended_event(verdict)
        self._host_journal.close()
        self._events_journal.close()
        self._follower.poll()
        state.state = verdict.state
        state.failure = verdict.failure
        state.message = verdict.message
        state.exit_code = verdict.exit_code
        state.ended_at = time.time()
        state.step = self.view.step or state.step
        self._ingesting.stop()
        self._write_state()
        self.history_waits = self._ingesting.finish(HISTORY_WAIT_S, self._waiting_for_history)
        self._show_tick()
        return state

    def _ended_event(self, verdict: Verdict) -> None:
        severity: Severity = "error" if verdict.state in ("failed", "lost") else "info"
        text = verdict.state if verdict.message is None else f"{verdict.state}: {verdict.message}"
        self._event(
            Event(
                at=time.time(), kind="ended", severity=severity, message=text, detail={"failure": verdict.failure or ""}
            )
        )

    def _waiting_for_history(self, reason: str) -> None:
        self._show(Event(at=time.time(), kind="history_waits", severity="warning", message=reason))

    # --- each tick

    def _tick(self) -> None:
        workers = self._workers
        assert workers is not None
        for line in self._follower.poll():
            match line:
                case RankStarted() if line.attempt >= self._first_attempt:
                    self._rank_started(line)
                case Step():
                    self._watch_window(line)
                case PhaseChange() if line.name in STEPPING:
                    self._stepping_since = time.monotonic()  # nor is a save that took its time
                case Event() if line.at >= self._began_at:
                    self._show(line)  # a rank's own news; its journal has it
        self.state.step = self.view.step or self.state.step
        if self.state.state == "starting" and (
            self.view.steps or any(r.phase in STEPPING for r in self.view.ranks.values())
        ):
            self.state.state = "running"
        self._take_inbox()
        self._stopping.look(workers)
        if self._stopping.kind == "stop":
            self.state.state = "stopping"
        self._watch_for_hang(workers)
        self._host_journal.flush()
        self._events_journal.flush()
        now = time.monotonic()
        if now - self._heartbeat_at >= HEARTBEAT_S:
            self._heartbeat_at = now
            self._write_state()
            if self.info.own_command:
                self._find_used_gpus()
        self._show_tick()

    def _rank_started(self, line: RankStarted) -> None:
        assert self._workers is not None
        self._workers.note_rank(line.pid)
        self.state.ranks = [r for r in self._workers.ranks if r.alive()]
        self.state.steps_total = line.steps_total or self.state.steps_total
        if line.attempt > self.state.attempt:
            self.state.attempt = line.attempt
            self._measuring = False
            self.view.last_step_seen_at = None  # loading again is no silence of steps
            self._event(
                Event(
                    at=line.at,
                    kind="restarted",
                    severity="warning",
                    rank=line.rank,
                    message=f"attempt {line.attempt} began: the ranks were started again after a failure",
                )
            )
        changed = False
        if self.info.world_size != line.world_size:
            self.info.world_size, changed = line.world_size, True
        if self.info.device is None:
            self.info.device, changed = ("cuda" if line.device == "cuda" else "cpu"), True
        for gpu in self.info.gpus:
            if gpu.gpu_uuid == line.gpu_uuid and not gpu.used:
                gpu.used, changed = True, True
        if changed:
            self._quietly(lambda: self.run_dir.write_info(self.info))

    def _find_used_gpus(self) -> None:
        """An own command's GPUs are those that a process of it computes on."""
        pids = set(self._worker_pids())
        busy = {n.gpu.gpu_uuid for n in self._sampler.latest().gpus if any(p.pid in pids for p in n.processes)}
        found = [g for g in self.info.gpus if g.gpu_uuid in busy and not g.used]
        for gpu in found:
            gpu.used = True
        if found:
            self._quietly(lambda: self.run_dir.write_info(self.info))

    def _watch_window(self, line: Step) -> None:
        """Read the energy counters close to the edges of the measured window."""
        if (line.phase == "train") != self._measuring or line.step == self.view.steps_total:
            self._measuring = line.phase == "train"
            self._sampler.request_energy()

    def _watch_for_hang(self, workers: Workers) -> None:
        if self._stopping.kind is None and self.view.attempt >= self.run_dir.last_attempt():
            self._hangs.look(workers, self._stepping_since)

    # --- small things

    def _evidence(self) -> Evidence:
        workers = self._workers
        assert workers is not None
        # An attempt may end before a rank has said that it began.
        attempt = max(self.view.attempt, self.run_dir.last_attempt())
        world = self.view.world_size or (0 if self.info.own_command else self.info.world_size)
        paths = (self.run_dir.exit_record(attempt, rank) for rank in range(world))
        records = [r for r in (read_json(p, ExitRecord) for p in paths) if r is not None]
        kills = oom_kills()
        return Evidence(
            exit_code=workers.exit_code,
            records=records,
            world_size=world,
            own_command=self.info.own_command,
            log_tail=tail(self._launcher_log, begin=self._log_begins),
            stop_requested=self._stopping.kind,
            oom_kills=(kills or 0) - (self._oom_kills or 0),
            hang=self._hangs.verdict,
            gpu_lost=self._gpu_lost,
        )

    @property
    def _launcher_log(self) -> Path:
        return self.run_dir.logs / ("command.log" if self.info.own_command else "torchrun.log")

    def _worker_pids(self) -> list[int]:
        """For the host lane, which asks every second; the tree of a run's processes changes rarely."""
        now = time.monotonic()
        if self._workers and now - self._pids_at > WORKER_PIDS_EVERY_S:
            self._pids, self._pids_at = self._workers.pids(), now
        return self._pids

    def _take_inbox(self) -> None:
        while self._inbox:
            record = self._inbox.popleft()
            if isinstance(record, Event):
                self._event(record)
            elif isinstance(record, GpuSample | HostSample):
                self._host_journal.append(record)
                self.view.feed(record)

    def _say(self, kind: str, message: str, severity: Severity = "info") -> None:
        self._event(Event(at=time.time(), kind=kind, severity=severity, message=message))

    def _event(self, event: Event) -> None:
        self._events_journal.append(event)
        self.view.feed(event)
        if event.kind == "gpu_lost":
            self._gpu_lost.append(str((event.detail or {}).get("gpu_uuid", "a GPU")))
        self._show(event)

    def _show_tick(self) -> None:
        if self._on_tick is not None:
            try:
                self._on_tick(self)
            except Exception as error:  # noqa: BLE001  a terminal that has gone must not end a recorder
                self._lose_display(error)

    def _show(self, event: Event) -> None:
        if self._show_event is not None:
            try:
                self._show_event(event)
            except Exception as error:  # noqa: BLE001  a terminal that has gone must not end a recorder
                self._lose_display(error)

    def _lose_display(self, error: Exception) -> None:
        self._on_tick = self._show_event = None
        self._say(
            "display_lost", f"the display is gone ({type(error).__name__}: {error}); the recording goes on", "warning"
        )

    def _write_state(self) -> None:
        self.state.heartbeat_at = time.time()
        self._quietly(lambda: self.run_dir.write_state(self.state))

    def _quietly(self, write: Callable[[], None]) -> None:
        """A small file that cannot be written now (full disk) is written by a later tick."""
        try:
            write()
        except OSError:
            return
