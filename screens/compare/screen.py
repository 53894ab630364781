"""Compare: which GPUs, how many, how long, at what price, from own runs and published tables."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.events import Resize
from textual.widgets import Static

from lorawatch.errors import LorawatchError
from lorawatch.screens.compare import exporting, layout, model
from lorawatch.screens.compare.model import Choices, Loaded, Picture
from lorawatch.screens.compare.token_counter import TokenCounter
from lorawatch.screens.shared.background import Answered
from lorawatch.screens.shared.base import BaseScreen
from lorawatch.screens.shared.figure_table import GLYPHS, FigureTable
from lorawatch.text.sanitize import clean

if TYPE_CHECKING:
    from lorawatch.comparing.gather import Gathered
    from lorawatch.screens.compare.below import CompareBelow
    from lorawatch.screens.compare.fields import CompareFields

RETRY_S = 2.0
_AFTER_S = 0.05  # a frame or two


class CompareScreen(BaseScreen):
    """The table of configurations, a chart, the epochs, and the sentences that answer the question."""

    MODE = "compare"
    HELP = """\
Which GPUs, how many, how long, at what price? Each line is a GPU model and count at one piece of work; only the same work
is compared. ● measured (repeats are one line), ○ published, ◌ extrapolated, ◇ simulated; ± is a 95% interval.

space takes a line out or in, a all or none, b makes it the baseline (▸). w chooses the work, f shows other work too,
marked. p leaves the published tables out. left and right go through the columns. c turns the chart: tok/s, efficiency,
tok/J. v shows the epoch times and the notes where they have no room.

t goes to the fields: tokens of an epoch (50M, 5e7, 1.2B) or a data file, which enter counts; a price per kWh; prices of
GPUs, with host=, years= and use=70% for the hardware's share; GPU counts to fit from those that were measured. escape
goes back. e writes the comparison into a file: .html, .csv, .json, .md or .txt. g reads the history again."""
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("space", "tick", "Choose"),
        Binding("a", "all", "All/none", show=False),
        Binding("b", "baseline", "Baseline"),
        Binding("w", "work", "Work"),
        Binding("f", "turn('force')", "Other work", show=False),
        Binding("p", "turn('published')", "Published", show=False),
        Binding("c", "chart", "Chart"),
        Binding("v", "view", "View"),
        Binding("t", "fields", "Tokens, prices", key_display="t"),
        Binding("e", "export", "Export"),
        Binding("g", "reload", "Read again", show=False),
        Binding("escape", "back", "Table", show=False),
    ]
    DEFAULT_CSS = layout.CSS

    def __init__(self) -> None:
        super().__init__()
        self.choices = Choices()
        self.picture = Picture()
        self._gathered: Gathered | None = None
        self._below: CompareBelow | None = None
        self._fields: CompareFields | None = None
        self._words: Mapping[str, str] = {}
        self._counter = TokenCounter()
        self._counted: tuple[Path, str, int] | None = None
        self._file_name = exporting.DEFAULT_NAME
        self._asking = self._failing = False
        # else Textual reads all style sheets twice more, as after a change of the theme: 25 ms
        self._css_update_count = self.app._css_update_count
        self._loaded = threading.Event()
        self.action_reload()  # at once: reading takes longer than the making of the first frame

    def compose_body(self) -> ComposeResult:
        yield Static(id="answer")
        yield FigureTable(ticks=True, id="table")
        yield Static(id="about")
        yield Static(id="notice")

    async def _mount_footer(self) -> None:
        """The table comes first: see `_fill`."""

    async def _fill(self) -> None:
        """Chart, ladder, fields and the footer's keys come after the table: they take longer to make than everything else."""
        if not self.is_attached or self._below is not None:  # the user may have left already
            return
        from lorawatch.screens.compare.below import CompareBelow
        from lorawatch.screens.compare.fields import CompareFields

        self._below = CompareBelow(self.picture, id="below")
        self._fields = CompareFields(self._words, id="fields")
        await self.mount(self._below, self._fields, before="#notice")
        await super()._mount_footer()
        self._fields.hint(self.picture.hints)

    def on_mount(self) -> None:
        self.query_one("#table").focus()
        if self._loaded.is_set():  # before the answer could arrive
            self._asking = False
            self.action_reload()

    def on_unmount(self) -> None:
        self._counter.close()

    def on_screen_resume(self) -> None:
        self.action_reload()

    def on_resize(self, event: Resize) -> None:
        super().on_resize(event)
        self.set_class(layout.single(*event.size), "single")
        self.set_class(layout.one_below(*event.size), "one-below")
        if self._view not in layout.views(*event.size):
            self._show_view(layout.views(*event.size)[0])
        self._draw_answer()

    # --- questions and answers

    def action_reload(self) -> None:
        if not self._asking and (not self._failing or self.is_current):
            self._asking = True
            load = partial(model.load, self.choices, self._loaded, first=self._gathered is None)
            self.services.background.ask(self, "history", load)

    def _compare(self, **changes: Any) -> None:
        """Compare again with these choices; until the answer is there the old picture stays."""
        self.choices = choices = replace(self.choices, **changes)
        gathered = self._gathered
        if gathered is not None:
            self.services.background.ask(self, "compare", lambda: model.put_together(gathered, choices))

    def on_answered(self, message: Answered) -> None:
        self._asking = self._asking and message.key != "history"
        match message.key, message.error:
            case "history", None:
                self._take_history(message.value)
            case "history", LorawatchError() as error:
                self._failing = True
                self._say(f"! {error.message}; trying again", wrong=True)
                self.set_timer(RETRY_S, self.action_reload)
                self.set_timer(_AFTER_S, self._fill)
            case "compare", None:
                self._show(message.value)
            case exporting.KEY, None:
                self._exported(*message.value)
            case TokenCounter.KEY, _:
                self._take_count(message)
            case _, LorawatchError() as error:
                self._say(f"✗ {model.error_line(error)}", wrong=True)

    def _take_history(self, loaded: Loaded) -> None:
        if self._gathered is None:
            self._words = loaded.words
            self.choices = replace(self.choices, **{name: getattr(loaded.choices, name) for name in loaded.words})
        self._gathered = loaded.gathered
        if self._failing:
            self._failing = False
            self._say("")
        if self.choices == loaded.choices:
            self._show(loaded.picture)
        else:  # something was chosen meanwhile
            self._compare()

    # --- the picture

    def _show(self, picture: Picture) -> None:
        self.picture = picture
        comparison = picture.comparison
        with self.app.batch_update():
            table = self.query_one("#table", FigureTable)
            total, out = len(picture.table.lines), len(comparison.left_out) if comparison else 0
            title = f"{total} configuration{'s' if total != 1 else ''}" + (f", {total - out} chosen" if out else "")
            more = f"▸ {comparison.baseline.label}" if comparison is not None else ""
            table.show(picture.table, title, more + (" · ! other work" if self.choices.force else ""))
            used = {line.kind for line in picture.table.lines}
            table.border_subtitle = "  ".join(f"{GLYPHS[kind]} {kind}" for kind in GLYPHS if kind in used)
            self._draw_answer()
            self.on_figure_table_moved()
            if self._below is not None and self._below.is_mounted:
                self._below.show(picture)
        if self._fields is None:
            self.set_timer(_AFTER_S, self._fill)
        elif self._fields.is_mounted:
            self._fields.hint(picture.hints)
            self._count_again()

    def _draw_answer(self) -> None:
        """Whole sentences, as many as there is room for; a figure is never cut."""
        text = layout.whole_sentences(self.picture.answer, self.app.console, *self.size)
        if self.picture.work and self.size.height >= layout.HIGH and not self.has_class("single"):
            text.append(f"\n{self.picture.work}", "not bold dim")
        self.query_one("#answer", Static).update(text)

    def on_figure_table_moved(self) -> None:
        line = self.query_one("#table", FigureTable).current
        words = self.picture.about.get(line.key, "") if line else ""
        self.query_one("#about", Static).update(Text(words, no_wrap=True, overflow="ellipsis"))

    def _say(self, words: str, *, wrong: bool = False) -> None:
        style = f"bold {self.app.theme_variables.get('text-error', '')}".strip() if wrong else ""
        box = self.query_one("#notice", Static)
        box.update(Text(clean(words), style))
        box.set_class(bool(words), "shown")

    # --- choosing

    def on_figure_table_ticked(self, event: FigureTable.Ticked) -> None:
        self._compare(left_out=self.choices.left_out ^ {event.key})

    def action_tick(self) -> None:
        line = self.query_one("#table", FigureTable).current
        if line is not None:
            self._compare(left_out=self.choices.left_out ^ {line.key})

    def action_all(self) -> None:
        keys = {line.key for line in self.picture.table.lines}
        some_out = bool(keys & self.choices.left_out)
        self._compare(left_out=self.choices.left_out - keys if some_out else self.choices.left_out | keys)

    def action_baseline(self) -> None:
        line = self.query_one("#table", FigureTable).current
        if line is not None and line.kind == "extrapolated":
            self.notify("an extrapolated line is no baseline: choose one that was measured", severity="warning")
        elif line is not None:
            self._compare(baseline=line.key)

    def action_turn(self, what: str) -> None:
        self._compare(**{what: not getattr(self.choices, what)})

    def action_work(self) -> None:
        comparison = self.picture.comparison
        if comparison is None or len(self.picture.kinds) < 2:
            self.notify("all configurations are of the same work")
            return
        from lorawatch.screens.compare.choose_work import ChooseWork

        self.app.push_screen(
            ChooseWork(self.picture.kinds, comparison.baseline.key),
            lambda key: self._compare(baseline=key) if key is not None else None,
        )

    # --- the parts on the screen

    @property
    def _view(self) -> str:
        return next((v for v in layout.PANES if self.has_class(f"show-{v}")), "table")

    def _show_view(self, view: str) -> None:
        for name in layout.PANES:
            self.set_class(name == view, f"show-{name}")
        if self._below is not None and self._below.is_mounted:
            self._below.divide()

    def action_view(self) -> None:
        views = layout.views(*self.size)
        self._show_view(views[(views.index(self._view) + 1) % len(views)])
        self.call_after_refresh(self._keep_focus)

    def _keep_focus(self) -> None:
        """Move the focus away from a hidden part, so that the keys of the visible ones work."""
        if self.focused is None or not self.focused.is_on_screen:
            self.set_focus(next((w for w in self.query("#table, #ladder, #notes, #tokens") if w.is_on_screen), None))

    def action_chart(self) -> None:
        if self._below is not None:
            if self._view == "chart":
                self._below.turn()
            self._show_view("chart")

    # --- fields

    def action_fields(self) -> None:
        if self._fields is not None:
            if self.has_class("single"):
                self._show_view("fields")
            self.query_one("#tokens").focus()

    def action_back(self) -> None:
        self._show_view("table" if self._view == "fields" else self._view)
        self.query_one("#table").focus()

    def on_compare_fields_changed(self, event: CompareFields.Changed) -> None:
        if isinstance(event.value, Path):
            event.fields.say("tokens", f"enter counts those of {event.value}")
            return
        more = {"tokens_from": ""} if event.name == "tokens" else {}
        self._compare(**{event.name: event.value, **more})
        words = {n: event.fields.valid[n] for n in model.REMEMBERED}
        if words != self._words:
            self._words = words
            self.services.background.ask(self, "remember", lambda: model.remember(words))

    def on_compare_fields_confirmed(self, event: CompareFields.Confirmed) -> None:
        if isinstance(event.value, Path):
            self._counted = None
            self._count(event.value)
        else:
            self.action_back()

    def _count_again(self) -> None:
        """Count a file again where the compared work trains another model: tokens depend on its tokenizer."""
        if self._counted is not None and self._fields is not None and self._fields.values["tokens"] == self._counted[0]:
            self._count(self._counted[0])

    def _count(self, path: Path) -> None:
        comparison = self.picture.comparison
        if comparison is None or self._fields is None:
            return
        wanted = (path, comparison.baseline.model, comparison.baseline.sequence_length)
        if wanted != self._counted:
            self._counted = wanted
            self._fields.say("tokens", f"counting {path} …")
            self._counter.count(self, *wanted)

    def _take_count(self, message: Answered) -> None:
        fields = self._fields
        if fields is None or self._counted is None or fields.values["tokens"] != self._counted[0]:
            return  # something else was typed meanwhile
        if message.error is not None:
            self._counted = None
            fields.say("tokens", model.error_line(message.error), wrong=True)
        elif message.value is not None:
            path, counted = message.value
            fields.say("tokens", f"{path.name}: {counted.words}")
            self._compare(tokens=counted.tokens, tokens_from=f"{clean(path.name)}: {counted.words}")

    # --- a file

    def action_export(self) -> None:
        comparison = self.picture.comparison
        if comparison is None or not comparison.rows:
            self.notify("there is nothing to write", severity="warning")
        else:
            exporting.ask_name(self, comparison, self._file_name)

    def _exported(self, name: str, words: str | None) -> None:
        self._file_name = name
        if words is not None:
            self._say(f"✓ {words}")
        elif self.picture.comparison is not None:
            exporting.ask_replace(self, self.picture.comparison, name)
