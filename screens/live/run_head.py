"""The lines above the panes: which run, how far it is, what it reaches."""

from __future__ import annotations

from rich.text import Text
from textual.widgets import Static

from lorawatch.run.directory import ENDED
from lorawatch.screens.shared.braille import braille
from lorawatch.text.numbers import duration, number
from lorawatch.text.run_summary import evaluation_words
from lorawatch.watching.frame import Frame, Head
from lorawatch.watching.words import energy_words, joules, power_words, tok_s_words

_GLYPH = {"running": "▶", "starting": "◌", "queued": "◌", "stopping": "■", "completed": "✓", "stopped": "■", "failed": "✗",
          "lost": "✗"}  # fmt: skip


class RunHead(Static):
    """State, progress and the run's figures; with no run, what the panes show instead."""

    DEFAULT_CSS = """
    RunHead { height: auto; max-height: 6; padding: 0 1; }
    """

    def show(self, frame: Frame) -> None:
        """Draw this frame."""
        colours = {name: self.app.theme_variables.get(name, "") for name in ("success", "warning", "error", "primary")}
        width = max(self.size.width - 2, 20)
        text = Text(no_wrap=True, overflow="ellipsis")
        if frame.head is None:
            _machine(text, frame)
        else:
            _run(text, frame, frame.head, width, colours)
        for alert in frame.alerts[:1] if self.screen.has_class("-low") else frame.alerts[:3]:
            colour = colours["error" if alert.severity == "error" else "warning"]
            text.append(f"\n{alert.glyph} {alert.word}: {alert.text}", _style(colour, bold=True))
        if frame.notice:
            text.append(f"\n! {frame.notice}", _style(colours["warning"]))
        self.update(text)


def _style(colour: str, *, bold: bool = False) -> str:
    usable = colour if colour.startswith("#") else ""
    return f"bold {usable}".strip() if bold else usable


def _machine(text: Text, frame: Frame) -> None:
    text.append("this machine", "bold")
    text.append(
        "   no run is shown; 3 launches one, 2 looks back" if not frame.others else "   ] shows the live run", "dim"
    )
    if frame.host:
        text.append(f"\n{frame.host}", "dim")


def _run(text: Text, frame: Frame, head: Head, width: int, colours: dict[str, str]) -> None:
    colour = {"failed": "error", "lost": "error", "stopping": "warning", "stopped": "warning", "starting": "primary"}
    state = head.state.upper() + (f" {head.failure}" if head.failure else "")
    text.append(f"{_GLYPH.get(head.state, '·')} {head.run_id} ", "bold")
    text.append(f"{head.name[:32]}  ", "bold")
    text.append(state, _style(colours[colour.get(head.state, "success")], bold=True))
    if frame.replay is not None:
        replay = frame.replay
        how = "paused" if replay.paused else f"{replay.speed:g}×"
        text.append("  ")
        text.append(f" REPLAY {duration(replay.position_s)}/{duration(replay.length_s)} {how} ", "reverse")
    if head.attempt:
        text.append(f"  attempt {head.attempt}", _style(colours["warning"]))
    if len(frame.others) > 1:
        text.append(f"  run {frame.others.index(head.run_id) + 1 if head.run_id in frame.others else '–'} of "
                    f"{len(frame.others)} live", "dim")  # fmt: skip
    text.append("\n")
    if head.steps_total:
        share = min(head.step / head.steps_total, 1.0)
        room = max(min(width - 46, 60), 8)
        full = int(share * room)
        text.append(f"step {head.step}/{head.steps_total} ")
        text.append("━" * full, _style(colours["primary"]))
        text.append("━" * (room - full), "dim")
        text.append(f" {100 * share:.0f}%")
    elif head.step:
        text.append(f"step {head.step}")
    else:
        text.append(head.phase, "dim")
    if head.state not in ENDED:
        text.append(f"  ETA {duration(head.eta_s)}" if head.eta_s else "")
    text.append(f"  {duration(head.elapsed_s)}", "dim")
    if head.state == "starting" and head.steps_total:
        text.append(f"  {head.phase}", "dim")
    text.append("\n")
    if head.message and head.state in ENDED:
        text.append(
            head.message.splitlines()[0] + "\n", _style(colours["error" if head.state != "stopped" else "warning"])
        )
    text.append("   ".join(figures(head, width)), "bold")


def figures(head: Head, width: int) -> list[str]:
    """The run's figures: while it lives of its recent steps, after its end the same as `lorawatch show` has."""
    found = []
    if head.step:
        found.append(tok_s_words(head))
        if head.tok_per_j is not None:
            found.append(f"{head.tok_per_j:.1f} tok/J")
        if head.power_w is not None:
            found.append(power_words(head))
        wide = width >= 100 or head.eval_step is None
        found.append(f"loss {number(head.loss, 4)}" + (_loss_curve(head) if wide else ""))
        if head.eval_step is not None:
            found.append(f"eval {_evaluation(head, head.eval_step, wide)}")
        if head.mfu is not None:
            found.append(f"MFU {100 * head.mfu:.0f}%")
    elif head.power_w is not None:
        found.append(power_words(head))
    if head.energy_j is not None:
        found.append(energy_words(head))
    if head.energy_all_j is not None and head.energy_all_j != head.energy_j:
        found.append(f"all GPUs {number(head.power_all_w)} W {joules(head.energy_all_j)}")
    return found


def _evaluation(head: Head, step: int, wide: bool) -> str:
    """The last evaluation's loss, and where the lowest was."""
    if wide or head.best_eval_step is None:
        return evaluation_words(head.eval_loss, step, head.best_eval_loss, head.best_eval_step)
    lowest = "the lowest" if step == head.best_eval_step else f"lowest at step {head.best_eval_step}"
    return f"{number(head.eval_loss, 4)} ({lowest})"


def _loss_curve(head: Head) -> str:
    curve = head.loss_curve
    if curve is None or len(curve.low) < 2:
        return ""
    columns = curve.columns(curve.start, curve.end, 24)
    known = [c for c in columns if c is not None]
    if not known:
        return ""
    return " " + braille(columns, 1, min(c[0] for c in known), max(c[1] for c in known), fill=False)[0]
