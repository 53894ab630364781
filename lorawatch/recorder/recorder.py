"""The recorder: starts a run's workers, or takes them over, and records them until the last one has gone."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from lorawatch.errors import LorawatchError, UsageError
from lorawatch.launch.choose import launcher_of
from lorawatch.launch.placement import Placement
from lorawatch.recipe.schema import Recipe
from lorawatch.recorder.ending import ended_event, exit_records, verdict_of_loss, write_end
from lorawatch.recorder.hang import STEPPING, HangWatch
from lorawatch.recorder.infofile import InfoFile
from lorawatch.recorder.ingesting import Ingesting
from lorawatch.recorder.last_words import last_words
from lorawatch.recorder.leftovers import settle
from lorawatch.recorder.lines import RecorderLines
from lorawatch.recorder.logs import size_of, tail
from lorawatch.recorder.notices import Notices
from lorawatch.recorder.showing import Showing
from lorawatch.recorder.starting import interconnect_variables, start_launcher
from lorawatch.recorder.statefile import StateFile
from lorawatch.recorder.stopping import Stopping
from lorawatch.recorder.workers import Workers
from lorawatch.run.adapters import best_of
from lorawatch.run.directory import RunDir, RunInfo, RunState
from lorawatch.run.follower import Follower
from lorawatch.run.live import LiveView
from lorawatch.run.liveness import deciding, known_workers, started_for, was_started_for
from lorawatch.run.records import Evaluation, Event, ExitRecord, PhaseChange, RankStarted, Step
from lorawatch.run.verdict import Evidence, Verdict, judge
from lorawatch.system.home import host_name
from lorawatch.system.processes import ProcessId, has_children, in_initial_namespace, keep_orphans, oom_kills
from lorawatch.telemetry.sampler import Sampler
from lorawatch.text.masking import mask_output

if TYPE_CHECKING:
    from lorawatch.telemetry.driver import GpuDriver

TICK_S = 0.2
HEARTBEAT_S = 1.0
WORKER_PIDS_EVERY_S = 5.0


class Recorder:
    """Supervises one run. One thread calls `run`; `stop` and `kill` may come from a signal handler.

    Args:
        run: The run's directory, prepared.
        placement: Where the ranks go; None for an own command.
        recipe: The recipe; None for an own command.
        command: The own command as it was typed, which is in no file; None for a recipe, and to adopt.
        driver: The GPUs' readings; None on a machine without a GPU's driver.
        on_begin: Called once the run is this recorder's, for a display.
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
        driver: GpuDriver | None = None,
        on_begin: Callable[[], None] | None = None,
        on_tick: Callable[[Recorder], None] | None = None,
        on_event: Callable[[Event], None] | None = None,
    ) -> None:
        self.run_dir, self.recipe = run, recipe
        self.history_waits: str | None = None
        """After the end: why the history lacks lines that the journals have, or None."""
        self._facts = InfoFile(run)
        self._placement, self._driver, self._command = placement, driver, command
        self._launcher = launcher_of(run, self.info, command=command, recipe=recipe, placement=placement)
        self._workers: Workers | None = None
        self._state_file = StateFile(run)
        self.view = LiveView.of(self.info)
        self._follower = Follower(run, self.view, skip_host=True)
        self._showing = Showing(
            on_begin, on_tick, on_event, lambda why: self._lines.say("display_lost", why, "warning")
        )
        self._lines = RecorderLines(run, host_name(), self.view, self._showing.event)
        self._sampler = self._new_sampler()
        self._ingesting = Ingesting(run, self._lines.put)
        self._stopping = Stopping(run, self.view, self._lines.say)
        self._hangs = HangWatch(run, self.view, recipe.launch.hang_timeout_s if recipe else 0.0, self._lines.event)
        self._notices = Notices(self._lines.say, host_name())
        self._oom_kills = oom_kills()
        # No process of earlier attempts is left: a pid that they name may be another process's today.
        self._first_attempt = self.state.attempt
        self._began_at = time.time()
        self._stepping_since = 0.0
        self._measuring = False
        self._heartbeat_at = 0.0
        self._log_begins = 0
        self._pids: list[int] = []
        self._pids_at = -WORKER_PIDS_EVERY_S

    def _new_sampler(self) -> Sampler:
        return Sampler(
            self.info.gpus,
            self._driver,
            sample_hz=self.info.sample_hz,
            host=host_name(),
            write=self._lines.put,
            on_event=self._lines.put,
            worker_pids=self._worker_pids,
            disk=self.run_dir.root,
        )

    @property
    def info(self) -> RunInfo:
        """What was asked, and what the ranks have reported since."""
        return self._facts.info

    @property
    def state(self) -> RunState:
        """What is true of the run now."""
        return self._state_file.state

    # --- from outside

    def without_secrets(self, text: str) -> str:
        """What the run's command has printed, with the secrets of its own line as `***`."""
        return mask_output(text, self._command or ())

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
        if self._first_attempt:
            self._leave_out_the_past()
        self._begin()
        log = self.run_dir.logs / self._launcher.log_name
        self._log_begins = size_of(log)
        alone = os.getpid() != 1 and not has_children()
        orphans = keep_orphans()
        try:
            variables = interconnect_variables(self.recipe, self._placement, self._driver, self._lines)
            process = start_launcher(self._launcher, self._facts, self.state, variables, log)
        except (LorawatchError, OSError) as error:
            self._end(Verdict("failed", "nonzero_exit", str(error), getattr(error, "exit_code", 1)))
            raise
        launcher = ProcessId.of(process.pid) or ProcessId(process.pid, 0, "")  # it may have ended already
        self._workers = Workers(
            launcher, process, orphans=orphans, is_ours=None if alone else partial(was_started_for, self.run_dir)
        )
        self.state.launcher = launcher
        self._state_file.beat()
        how = f"started again, attempt {self._first_attempt}" if self._first_attempt else "started"
        self._lines.event(
            Event(at=time.time(), kind="started", message=f"{self.info.name} {how}", detail={"pid": process.pid})
        )
        return self._supervise()

    def _leave_out_the_past(self) -> None:
        """What the journals have so far is for the history and not for the display."""
        past = {path.name: size_of(path) for path in self.run_dir.journal.glob("rank-*.jsonl")}
        self._follower = Follower(self.run_dir, self.view, skip_host=True, offsets=past)
        self.view.attempt = self._first_attempt
        if best := best_of(self.run_dir):
            self.view.best = Evaluation(attempt=best.attempt, rank=0, step=best.step, ended_at=best.at, loss=best.loss)

    def adopt(self) -> RunState:
        """Take over the workers of a run whose recorder is gone, and record them until they have ended.

        Raises:
            UsageError: The run has ended, has a living recorder, or never started its workers.
            RunElsewhere, RunBusy: Another host looks after it; another command decides about it.
        """
        run = self.run_dir
        with deciding(run) as status:
            if status.kind == "ended":
                raise UsageError(
                    f"run {run.run_id} has ended ({run.state().state})", hint=f"lorawatch show {run.run_id} says how"
                )
            if status.kind == "recorded":
                pid = status.recorder.pid if status.recorder else "?"
                raise UsageError(
                    f"run {run.run_id} has a living recorder (pid {pid})", hint="there is nothing to adopt"
                )
            self._state_file = StateFile(run)
            before = self.state
            there = started_for(run)
            launcher = before.launcher or next(iter(there), None)
            if launcher is None:
                raise UsageError(
                    f"run {run.run_id} never started its workers", hint="start the recipe again: lorawatch --record"
                )
            before.launcher = launcher
            if status.kind == "over":
                words = last_words(run, self._exit_records())
                self._state_file.over_at = max(before.heartbeat_at or 0.0, words.at or 0.0) or None
            self._begin()
        self._workers = Workers(
            launcher, None, [*known_workers(before), *there], find=partial(started_for, self.run_dir)
        )
        self._lines.say("adopted", "a new recorder took the run over")
        return self._supervise()

    def _begin(self) -> None:
        self._state_file.begin()
        self._showing.begin()
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
        settle(
            workers,
            own_command=self.info.own_command,
            stopped=self._stopping.kind is not None or self._hangs.verdict is not None,
            say=self._lines.say,
            tick=self._tick,
        )
        self._tick()
        return self._end(self._judged())

    def _judged(self) -> Verdict:
        lost = self._state_file.lost
        return judge(self._evidence()) if lost is None else verdict_of_loss(self.run_dir, lost)

    def _end(self, verdict: Verdict) -> RunState:
        self._sampler.stop(timeout_s=2.0)
        self._lines.take()
        if verdict.message is not None:  # often a line of the command's own output
            verdict = replace(verdict, message=self.without_secrets(verdict.message))
        self._lines.event(ended_event(verdict))
        self._lines.close()
        self._follower.poll()
        state, records = self.state, self._exit_records()
        state.state, state.failure, state.message = verdict.state, verdict.failure, verdict.message
        state.exit_code = verdict.exit_code
        state.step = max([self.view.step, self.view.last_lost_step, *(r.step for r in records)]) or state.step
        self._ingesting.stop()
        self.history_waits = write_end(self.run_dir, self._state_file, self._ingesting, records, self._lines)
        self._showing.tick(self)
        return state

    def _evidence(self) -> Evidence:
        workers = self._workers
        assert workers is not None
        log = tail(self.run_dir.logs / self._launcher.log_name, begin=self._log_begins)
        return Evidence(
            self._launcher.end(workers.exit_code, log),
            records=self._exit_records(),
            world_size=self._world_size,
            stop_requested=self._stopping.kind,
            not_saved=self._stopping.not_saved,
            oom_kills=(oom_kills() or 0) - (self._oom_kills or 0),
            hang=self._hangs.verdict,
            gpu_lost=self._lines.gpu_lost,
            lines_lost=self.view.lines_lost,
            step=self.view.step,
        )

    @property
    def _world_size(self) -> int:
        return self.view.world_size or self._launcher.world_size or 0

    def _exit_records(self) -> list[ExitRecord]:
        # An attempt may end before a rank has reported that it began.
        attempt = max(self.view.attempt, self.run_dir.last_attempt())
        return exit_records(self.run_dir, attempt, self._world_size)

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
                case Event():
                    if line.kind == "stop_unanswered":
                        self._stopping.unanswered(line.message)
                    if line.at >= self._began_at:
                        self._showing.event(line)  # a rank's own news; its journal has it
        self.state.step = self.view.step or self.state.step
        if self.state.state == "starting" and (
            self.view.steps or any(r.phase in STEPPING for r in self.view.ranks.values())
        ):
            self.state.state = "running"
        self._lines.take()
        self._stopping.look(workers)
        if self._stopping.kind == "stop":
            self.state.state = "stopping"
        self._watch_for_hang(workers)
        refused = self._lines.flush()
        if self._state_file.lost is None:
            self._notices.disk(refused)
        self._notices.reports(self.view)
        now = time.monotonic()
        if now - self._pids_at >= WORKER_PIDS_EVERY_S:
            self._pids, self._pids_at = [p.pid for p in workers.look()], now
        if now - self._heartbeat_at >= HEARTBEAT_S:
            self._heartbeat_at = now
            self._beat(workers)
            if self.info.own_command:
                self._find_used_gpus()
        self._showing.tick(self)

    def _beat(self, workers: Workers) -> None:
        self.state.ranks = list(workers.ranks.values())
        self.state.family = [(p.pid, p.started) for p in workers.family]
        before = self._state_file.lost
        lost = self._state_file.beat()
        if lost is None or lost == before:
            return
        if lost == "deleted":
            self._lines.show_only(
                "deleted", f"its directory was deleted: nothing more is recorded: {self.run_dir.root}"
            )
        else:  # two trainings in one directory would spoil each other's checkpoints
            self._lines.show_only("taken", "another recorder has taken the run over: the processes here are ended")
            workers.kill()

    def _rank_started(self, line: RankStarted) -> None:
        assert self._workers is not None
        if self._workers.note_rank(line.rank, line.process) == "foreign" and self._launcher.local_ranks:
            self._notices.foreign(line)
        self._heartbeat_at = 0.0  # whoever adopts the run must find its ranks
        self.state.steps_total = line.steps_total or self.state.steps_total
        if line.attempt > self.state.attempt:
            self.state.attempt = line.attempt
            self._measuring = False
            self.view.last_step_seen_at = None  # loading again is no silence of steps
            words = f"attempt {line.attempt} began: the ranks were started again after a failure"
            restarted = Event(at=line.at, kind="restarted", severity="warning", rank=line.rank, message=words)
            self._lines.event(restarted)
        self._facts.rank_started(line)

    def _find_used_gpus(self) -> None:
        """An own command's GPUs are those that a process of it computes on."""
        if not in_initial_namespace():  # the driver numbers processes as the host does
            return
        pids = set(self._pids)
        busy = {n.gpu.gpu_uuid for n in self._sampler.latest().gpus if any(p.pid in pids for p in n.processes)}
        self._facts.uses(busy)

    def _watch_window(self, line: Step) -> None:
        """Read the energy counters close to the edges of the measured window."""
        if (line.phase == "train") != self._measuring or line.step == self.view.steps_total:
            self._measuring = line.phase == "train"
            self._sampler.request_energy()

    def _watch_for_hang(self, workers: Workers) -> None:
        if self._stopping.kind is None and self.view.attempt >= self.run_dir.last_attempt():
            self._hangs.look(workers, self._stepping_since)

    def _worker_pids(self) -> list[int]:
        """For the host lane, which asks every second, from a thread of its own."""
        return self._pids
