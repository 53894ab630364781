"""How a run is stopped: its ranks are asked to stop together and save; whoever does not, or a second request, is ended."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Literal

from lorawatch.recorder.workers import Workers
from lorawatch.run.directory import RunDir
from lorawatch.run.live import LiveView
from lorawatch.run.records import EventKind, Severity
from lorawatch.text.numbers import rank_words

GRACE_S = 60.0
_TERMINATED_S = 10.0


class Stopping:
    """Serves the requests to stop or kill a run, from signals and from its directory.

    Args:
        run: The run's directory, whose requests the ranks and other processes see too.
        view: What is known of the ranks, kept up to date by the caller.
        say: Called for each event with its kind, message and severity.

    Attributes:
        signals: How often the recorder itself was asked; a signal handler counts it up.
        kind: What was begun; "kill" once every process was ended at once.
        not_saved: Why the stop saved nothing, once that is known.
    """

    def __init__(self, run: RunDir, view: LiveView, say: Callable[[EventKind, str, Severity], None]) -> None:
        self.signals = 0
        self.kind: Literal["stop", "kill"] | None = None
        self.not_saved: str | None = None
        self._run, self._view, self._say = run, view, say
        self._since: float | None = None  # None as well once patience has ended

    def look(self, workers: Workers) -> None:
        """Do what is due; called every tick."""
        asked = max(self.signals, 2 if self._run.requested("kill") else int(self._run.requested("stop")))
        if asked >= 2 and self.kind != "kill":
            self.kind = "kill"
            self._say("killing", "ending every process at once", "info")
            workers.kill()
        elif asked == 1 and self.kind is None:
            self.kind = "stop"
            self._since = time.monotonic()
            if workers.look():  # of a run that is adopted after its end no process is left to ask
                self._ask(workers)
        elif self.kind == "stop" and self._since is not None:
            self._wait(workers, self._since)

    def unanswered(self, words: str) -> None:
        """A rank gave up waiting for others to answer the stop.

        Args:
            words: What it says of them.
        """
        self.not_saved = words

    def _ask(self, workers: Workers) -> None:
        self._request()
        silent = self._view.silent_ranks
        if not any(rank.started for rank in self._view.ranks.values()):
            # no rank there that could agree on a step: an own command without the callback, or ranks still loading
            what = "no step to save yet: asking the ranks" if self._view.world_size else "asking the command"
            self._say("stopping", f"{what} to end; once more ends it at once", "info")
            workers.terminate()
            return
        if silent:
            self.not_saved = f"{rank_words(silent)} of {self._view.world_size} cannot be asked to stop with the others"
            self._say("stopping", f"{self.not_saved}: asking the workers to end, without a save", "warning")
            workers.terminate()
            return
        how = "the ranks stop together at the next step and save"
        if self._run.request_of("stop") == b"nan_loss":
            how = "the ranks stop together at the next step"
        elif self._view.separate:
            how = "each rank stops at its own next step, and rank 0 saves"
        self._say("stopping", f"{how}; once more ends them at once", "info")

    def _request(self) -> None:
        """Let the ranks know; on a full disk a later tick does."""
        if not self._run.requested("stop"):
            with contextlib.suppress(OSError):
                self._run.request("stop")

    def _wait(self, workers: Workers, since: float) -> None:
        self._request()
        now = time.monotonic()
        grace = max(GRACE_S, 10 * (self._view.usual_step_s() or 0))
        if self.not_saved is not None:
            self._end(workers, "nothing can be saved: ending the ranks")
        elif any(rank.phase in ("saving", "evaluating") for rank in self._view.ranks.values()):
            # A large checkpoint may take its time on a slow disk, and a script's own evaluation too.
            self._since = now
        elif now - since > grace:
            self.not_saved = f"the ranks did not stop within {grace:.0f} s"
            self._end(workers, f"{self.not_saved}: ending them")

    def _end(self, workers: Workers, words: str) -> None:
        self._since = None
        self._say("stopping", words, "warning")
        workers.terminate()
        if not workers.wait_gone(_TERMINATED_S):
            workers.kill()
