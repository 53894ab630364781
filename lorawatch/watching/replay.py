"""A recorded run's lines in order of time, fed up to any moment: what is shown then is what was shown then."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import replace

from lorawatch.errors import RunNotFound
from lorawatch.run.directory import RunDir, RunState
from lorawatch.run.journal import JournalTail
from lorawatch.run.records import AnyLine, Evaluation, GpuSample, HostSample, Step
from lorawatch.watching.final import RunFigures
from lorawatch.watching.frame import Frame, Replaying
from lorawatch.watching.watch import Watch

SPEEDS = (0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 100.0)


def line_time(line: AnyLine) -> float:
    """When a line was written, unix seconds."""
    match line:
        case Step() | Evaluation():
            return line.ended_at
        case GpuSample() | HostSample():
            return line.sampled_at
        case _:
            return line.at


class Replay:
    """A run that has ended, or the past of one that lives, at any moment of it.

    Args:
        run: The run's directory; its journals are read once.
        speed: Seconds of the run a second.
        final: The run's figures after its end, which are shown there.

    Raises:
        RunNotFound: The directory has no journal lines.
    """

    def __init__(self, run: RunDir, speed: float = 1.0, *, final: RunFigures | None = None) -> None:
        self.run = run
        self.speed = speed
        self.paused = False
        self._info = run.info()
        self._final = run.state()
        lines: list[AnyLine] = []
        for path in sorted(run.journal.glob("*.jsonl")):
            tail = JournalTail(path)
            while new := list(tail.records()):
                lines += new
        if not lines:
            raise RunNotFound(f"run {run.run_id} has no journal left to replay", hint="lorawatch show has its figures")
        lines.sort(key=line_time)
        self._lines = lines
        self._times = [line_time(line) for line in lines]
        self.begin = min(self._final.started_at or self._times[0], self._times[0])
        self.end = max(self._times[-1], self._final.ended_at or 0.0)
        self.position = self.begin
        self._fed = 0
        self._final_figures = final
        self._watch = self._new_watch()

    def _new_watch(self) -> Watch:
        watch = Watch(self._info)
        watch.final = self._final_figures
        return watch

    def advance(self, seconds: float) -> None:
        """Let `seconds` of a clock pass; at the end it stands still."""
        if not self.paused:
            self.seek(self.position + seconds * self.speed)
            if self.position >= self.end:
                self.paused = True

    def seek(self, at: float) -> None:
        """Go to unix time `at`, forth or back."""
        self.position = min(max(at, self.begin), self.end)
        until = bisect_right(self._times, self.position)
        if until < self._fed:
            self._watch, self._fed = self._new_watch(), 0
        for line in self._lines[self._fed : until]:
            self._watch.feed(line)
        self._fed = until

    def step(self, forth: bool = True) -> None:
        """Go to the moment of the next line of a rank's step, or of the one before."""
        self.paused = True
        times = [at for at, line in zip(self._times, self._lines, strict=True) if isinstance(line, Step)]
        later = [t for t in times if t > self.position] if forth else [t for t in times if t < self.position]
        self.seek((later[0] if forth else later[-1]) if later else (self.end if forth else self.begin))

    def faster(self, more: bool = True) -> None:
        """The next speed up or down."""
        among = [s for s in SPEEDS if s > self.speed] if more else [s for s in SPEEDS if s < self.speed][::-1]
        self.speed = among[0] if among else self.speed

    def frame(self) -> Frame:
        """What was shown at the present position."""
        frame = self._watch.frame(self.position, self.state())
        replaying = Replaying(self.position - self.begin, self.end - self.begin, self.speed, self.paused)
        return replace(frame, replay=replaying)

    def state(self) -> RunState:
        """The run's state at the present position, from what had happened by then."""
        final = self._final
        if self.position >= self.end or (final.ended_at and self.position >= final.ended_at):
            return final
        view = self._watch.view
        kinds = {e.kind for e in view.events}
        state = RunState(started_at=final.started_at, attempt=view.attempt, steps_total=view.steps_total)
        if "ended" in kinds:
            return final
        if kinds & {"stopping", "killing"}:
            state.state = "stopping"
        elif view.steps or any(r.phase == "training" for r in view.ranks.values()):
            state.state = "running"
        else:
            state.state = "starting"
        return state
