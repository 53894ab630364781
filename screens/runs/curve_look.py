"""The view of a run's curves, and which curves it needs; no drawing, no terminal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lorawatch.screens.runs.curve_axis import View

if TYPE_CHECKING:
    from lorawatch.storage.curves import Axis, Curves, Thinned

EACH = -1
_LEAST = {"time": 0.05, "step": 4.0}  # s, steps: the closest zoom
_MARGIN = 0.5  # of a window, read beside it on either side, so that a small move needs no question


@dataclass(frozen=True)
class Question:
    """Curves that are needed: `lorawatch.storage.curves.run_curves` answers."""

    axis: Axis
    each_rank: bool
    window: tuple[float, float] | None = None


class CurveLook:
    """Axis, ranks, window and cursor of the view. Until an answer arrives the old curves stay.

    Args:
        ask: Takes a question; `take` gets its answer, whenever that comes.

    Attributes:
        axis: `time` or `step`.
        part: None for all ranks together, the number of a rank in their order, or `EACH` for a row a rank.
        metric: The only curve shown; None for all.
        window: The part of the axis that is seen; None for the whole run, however long it grows.
        cursor: A place on the axis; None for the run's last step, whichever that becomes.
        top: The first rank seen of the rows of ranks.
    """

    def __init__(self, ask: Callable[[Question], object]) -> None:
        self._ask = ask
        self.axis: Axis = "time"
        self.part: int | None = None
        self.metric: str | None = None
        self.window: tuple[float, float] | None = None
        self.cursor: float | None = None
        self.top = 0
        self._wish: tuple[Axis, int | None] = (self.axis, self.part)
        self._all: dict[tuple[Axis, bool], Curves] = {}
        self._fine: Curves | None = None
        self._asked: tuple[float, float] | None = None
        self._answered: tuple[float, float] | None = None

    # --- the curves

    @property
    def question(self) -> Question:
        """The whole run in the present view."""
        return Question(self.axis, self.part is not None)

    @property
    def whole(self) -> Curves | None:
        """The whole run's curves in the present view."""
        return self._all.get((self.axis, self.part is not None))

    @property
    def ranks(self) -> list[int]:
        """The ranks there are, where they are known."""
        known = self._all.get((self.axis, True))
        return sorted(r for r in known.series if r is not None) if known else []

    @property
    def rank(self) -> int | None:
        """The rank whose curves are shown alone."""
        return None if self.part is None or self.part == EACH else self.ranks[min(self.part, len(self.ranks) - 1)]

    @property
    def curves(self) -> Curves | None:
        """What is drawn: the window's own curves where they cover it, else the whole run's."""
        whole, fine, window = self.whole, self._fine, self.window
        if whole is None or fine is None or window is None:
            return whole
        begin, end = fine.window
        fits = begin <= max(window[0], whole.begin) + 1e-6 and min(window[1], whole.end) <= end + 1e-6
        return fine if fits and end - begin < whole.end - whole.begin else whole

    @property
    def detailed(self) -> bool:
        """Whether the window is drawn from its own answer, not from the whole run's bins."""
        return self.curves is not self.whole

    @property
    def waiting(self) -> bool:
        """Whether something better than what is drawn was asked for."""
        asked = self._asked is not None and self.window is not None and self._asked != self._answered
        return asked or self._wish != (self.axis, self.part)

    def take(self, question: Question, curves: Curves) -> None:
        """An answer; the whole run as it is looked at now replaces what was known in other views, which is older."""
        key = (question.axis, question.each_rank)
        view_key = (self.axis, self.part is not None)
        if question.window is not None:
            if key == view_key:
                self._fine, self._answered = curves, question.window
        elif key != view_key:
            self._all[key] = curves
        else:
            before = self.whole
            self._all = {key: curves}
            if before is not None and self._asked is not None and self._asked[1] >= before.end:
                self._asked = None  # the window reaches what has grown
        self.settle()

    def give_up(self) -> None:
        """The wanted view does not exist."""
        self._wish = self.axis, self.part

    def ask_again(self) -> None:
        """After an answer that failed."""
        self._asked = None
        self.settle()

    def settle(self) -> None:
        """Switch to the wanted view if its curves have been read, and ask for missing ones."""
        axis, part = self._wish
        if (axis, part is not None) not in self._all:
            if self._all:
                self._ask(Question(axis, part is not None))
        elif self._wish != (self.axis, self.part):
            if axis != self.axis:
                self._translate(axis, self._all[axis, part is not None])
            if (axis, part is not None) != (self.axis, self.part is not None):
                self._fine = self._asked = None
            self.axis, self.part = self._wish
        self._ask_detail()

    def _ask_detail(self) -> None:
        """Ask for the window in its own bins, unless the whole run's are as fine as possible."""
        whole = self.whole
        if whole is None or self.window is None:
            return
        sample = next((t for s in whole.series.values() for t in s.values()), None)
        if sample is None or (self.axis == "step" and sample.width <= 1):
            return
        (begin, end), asked = self.window, self._asked
        span = end - begin
        if asked is not None and asked[0] <= begin and end <= asked[1] and span > (asked[1] - asked[0]) / 8:
            return
        wide = max(begin - _MARGIN * span, whole.begin), min(end + _MARGIN * span, whole.end)
        self._asked = wide if wide[1] - wide[0] < whole.end - whole.begin else (begin, end)
        self._ask(Question(self.axis, self.part is not None, self._asked))

    # --- the view

    def turn_axis(self) -> None:
        """Over steps instead of over time, and back."""
        self._wish = ("step" if self._wish[0] == "time" else "time", self._wish[1])
        self.settle()

    def turn_part(self, forth: bool) -> None:
        """All ranks together, each alone, a row a rank; and round again."""
        count = len(self.ranks)
        order: list[int | None] = [None, *range(max(count, 1)), *([EACH] if count != 1 else [])]
        here = self._wish[1]
        at = order.index(here) if here in order else 0
        self.show_part(order[(at + (1 if forth else -1)) % len(order)])

    def show_part(self, part: int | None) -> None:
        """Show this part of the ranks."""
        self._wish = (self._wish[0], part)
        self.top = 0
        self.settle()

    def turn_metric(self, names: list[str]) -> None:
        """One curve alone, the next, all of them."""
        here = [n for n in names if self.curves and any(n in s for s in self.curves.series.values())]
        order: list[str | None] = [None, *here]
        self.metric = order[(order.index(self.metric) + 1) % len(order)] if self.metric in order else None

    def view(self) -> View | None:
        """The view to draw; None before the first answer."""
        whole = self.whole
        if whole is None:
            return None
        begin, end = self.window or (whole.begin, whole.end)
        return View(
            begin, end, self.place(whole), self.rank, self.part == EACH, self.metric, self.top, self._words(whole)
        )

    def _words(self, whole: Curves) -> str:
        """The view in words."""
        ranks = len(self.ranks)
        who = {None: "all ranks together", EACH: f"each of {ranks} ranks"}.get(
            self.part, f"rank {self.rank} of {ranks}"
        )
        words = [who, "over time" if self.axis == "time" else "over steps"]
        if self.window is not None:
            closer = (whole.end - whole.begin) / (self.window[1] - self.window[0])
            words.append(f"{closer:,.{0 if closer >= 10 else 1}f}× closer")
        if self.metric is not None:
            words.append("one curve")
        if self.waiting:
            words.append("reading …")
        return " · ".join(words)

    def place(self, whole: Curves) -> float:
        """The cursor's place, within the window."""
        begin, end = self.window or (whole.begin, whole.end)
        place = _last_step(whole) if self.cursor is None else self.cursor
        return min(max(place, begin), end - (end - begin) * 1e-6)

    def zoom(self, factor: float) -> None:
        """See a part so many times as long, the cursor staying where it is on the screen; 0 for the whole run."""
        whole = self.whole
        if whole is None:
            return
        if factor == 0:
            self.window = None
        else:
            begin, end = self.window or (whole.begin, whole.end)
            self.cursor = at = self.place(whole)
            span = max((end - begin) * factor, _LEAST[self.axis])
            left = at - (at - begin) / (end - begin) * span
            self._see(left, left + span, whole)
        self._ask_detail()

    def go(self, place: float) -> None:
        """Move the cursor to this place; the window follows."""
        whole = self.whole
        if whole is None:
            return
        place = min(max(place, whole.begin), whole.end - (whole.end - whole.begin) * 1e-9)
        if self.window is not None:
            begin, end = self.window
            ahead = (end - begin) / 4
            if place >= end:
                self._see(place - (end - begin) + ahead, place + ahead, whole)
            elif place < begin:
                self._see(place - ahead, place + (end - begin) - ahead, whole)
        self.cursor = place
        self._ask_detail()

    def _see(self, begin: float, end: float, whole: Curves) -> None:
        """See this part of the axis, moved and cut so that it lies within the run."""
        span = max(end - begin, _LEAST[whole.axis])
        if span >= whole.end - whole.begin:
            self.window = None
            return
        begin = min(max(begin, whole.begin), whole.end - span)
        self.window = begin, begin + span

    def _translate(self, axis: Axis, target: Curves) -> None:
        """Window and cursor on the other axis: the steps of these times, or the times of these steps."""
        name = "step" if axis == "step" else "at"
        other = next((s[name] for s in self.curves.series.values() if name in s), None) if self.curves else None
        if other is None:
            self.window = self.cursor = None
            return
        if self.cursor is not None:
            self.cursor = _through(other, self.cursor, forth=False) + (0.5 if axis == "step" else 0.0)
        if self.window is not None:
            begin, end = _through(other, self.window[0], forth=True), _through(other, self.window[1], forth=False)
            self._see(begin, max(end, begin) + (axis == "step"), target)


def _last_step(curves: Curves) -> float:
    """Where the last step is; the end of the axis where there is none."""
    for series in curves.series.values():
        steps = series.get("step") or series.get("at")
        if steps is not None:
            last = max(i for i, low in enumerate(steps.low) if low == low)
            return steps.start + (last + 0.5) * steps.width
    return curves.end


def _through(other: Thinned, place: float, *, forth: bool) -> float:
    """The value at this place of the other axis; without one, that of the next place (or the one before)."""
    last = len(other.low) - 1
    index = min(max(int((place - other.start) / other.width), 0), last)
    up, down = range(index, last + 1), range(index, -1, -1)
    for i in (*up, *down) if forth else (*down, *up):
        if other.low[i] == other.low[i]:
            return float(other.low[i] if forth else other.high[i])
    return place
