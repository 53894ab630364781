"""Launch: choose a recipe, change it in a form or as YAML, see what it needs, and start it as a shell would."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, VerticalScroll
from textual.events import DescendantFocus
from textual.widgets import Input, OptionList, Static

from lorawatch.errors import HistoryBusy, LorawatchError
from lorawatch.recipe import edit, schema
from lorawatch.recipe.fields import ABSENT, recipe_fields
from lorawatch.run.directory import Gpu
from lorawatch.screens.launch import model
from lorawatch.screens.launch.model import Choice
from lorawatch.screens.launch.recipe_list import RecipeList
from lorawatch.screens.shared.background import Answered
from lorawatch.screens.shared.base import BaseScreen
from lorawatch.text.sanitize import clean

if TYPE_CHECKING:
    from textual.widgets import TextArea

    from lorawatch.screens.launch.gpu_list import GpuList
    from lorawatch.screens.launch.recipe_form import RecipeForm


class LaunchScreen(BaseScreen):
    """A list of recipes, the chosen one as a form and as YAML, the GPUs, and what the run needs.

    The YAML text is the only source: the form and the GPU list change it and show its values.
    """

    MODE = "launch"
    HELP = """\
Choose a recipe on the left: built-in ones, those of the latest runs, then every other recipe of the history. ctrl+o
opens a file. Enter goes to the form, escape back to the list; your changes to a recipe stay with it (marked *) until
you leave the program, and r on the list takes them back.

In the form up and down go from key to key; left and right, space or a click change a choice; an emptied key is left
out of the recipe, and its default counts. ctrl+e shows the same recipe as YAML (from 140 columns on both are shown).
Space ticks a GPU, a ticks all. Tags are words to find the run by. While you type, 1 to 4 are digits: escape first.

F5 (or ctrl+s) starts the run: a recorder of its own, exactly as lorawatch --record would; leaving this program does
not stop it. If it does not start, its words and the log's last lines are shown; escape leaves them."""
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("f5,ctrl+s", "start", "Start", key_display="F5", priority=True),
        Binding("ctrl+e", "other_view", "Form/YAML", priority=True),
        Binding("ctrl+o", "open", "Open file", priority=True),
        Binding("escape", "to_list", "List", priority=True),
    ]
    CSS = """
    LaunchScreen #middle { height: 1fr; }
    LaunchScreen #recipes { width: 30; height: 1fr; padding: 0; }
    LaunchScreen #recipes, LaunchScreen #form, LaunchScreen #text, LaunchScreen #failure {
        border: round $foreground 40%; border-title-color: $primary; background: $background; }
    LaunchScreen #recipes:focus, LaunchScreen #text:focus, LaunchScreen #failure:focus, LaunchScreen #form:focus-within {
        border: round $primary; }
    LaunchScreen.-medium #recipes { width: 21; }
    LaunchScreen #form, LaunchScreen #text { width: 1fr; height: 1fr; display: none; padding: 0; }
    LaunchScreen.show-form #form, LaunchScreen.show-text #text { display: block; }
    LaunchScreen.-wide #form { display: block; width: 3fr; }
    LaunchScreen.-wide #text { display: block; width: 2fr; }
    LaunchScreen #failure { width: 1fr; height: 1fr; border: round $error; padding: 0 1; }
    LaunchScreen.failed #form, LaunchScreen.failed #text { display: none; }
    LaunchScreen.-narrow #recipes { width: 1fr; }
    LaunchScreen.-narrow.editing #recipes { display: none; }
    LaunchScreen.-narrow.show-form #form, LaunchScreen.-narrow.show-text #text { display: none; }
    LaunchScreen.-narrow.editing.show-form #form, LaunchScreen.-narrow.editing.show-text #text { display: block; }
    LaunchScreen.-narrow.failed.failed #form, LaunchScreen.-narrow.failed.failed #text { display: none; }
    LaunchScreen.-narrow.-low #gpus Ticks { max-height: 2; }
    LaunchScreen.-narrow.-low #help { display: none; }
    LaunchScreen #tags-row { height: 1; padding: 0 1; }
    LaunchScreen #tags-row Static { width: 10; }
    LaunchScreen #tags { width: 1fr; max-width: 60; background: $surface; padding: 0 1; }
    LaunchScreen #tags:focus { background: $primary 30%; }
    LaunchScreen #verdict { height: auto; max-height: 7; min-height: 3; padding: 0 1; }
    LaunchScreen.-low #verdict { max-height: 4; }
    LaunchScreen.-narrow.-low #verdict { min-height: 1; max-height: 2; }
    """

    def __init__(self) -> None:
        super().__init__()
        self._list = RecipeList(id="recipes")
        self._text = ""
        self._checked = model.Checked({}, {})
        self._asked: tuple[object, ...] = ()
        self._history = self._disk = ""
        self._starting = False
        self._form: RecipeForm | None = None
        self._editor: TextArea | None = None
        self._gpus: GpuList | None = None

    # --- the screen's widgets

    def compose_body(self) -> ComposeResult:
        self.add_class("show-form")
        with Horizontal(id="middle"):
            yield self._list
        with Horizontal(id="tags-row"):
            yield Static("tags")
            yield Input(placeholder="words to find the run by", id="tags", compact=True)
        yield Static(id="verdict")

    def on_mount(self) -> None:
        self._list.focus()
        self.call_after_refresh(self._fill_middle)

    async def _fill_middle(self) -> None:
        """Form, editor and GPU list come after the first frame: they take longer to make than everything else."""
        if not self.is_attached:  # the user may have left already
            return
        from textual.widgets import TextArea

        from lorawatch.screens.launch.gpu_list import GpuList
        from lorawatch.screens.launch.recipe_form import RecipeForm

        form = RecipeForm(id="form")
        form.border_title = "form"
        editor = TextArea(id="text", show_line_numbers=False, tab_behavior="focus", compact=True)
        editor.border_title = "recipe.yaml"
        gpus = GpuList(id="gpus")
        await self.query_one("#middle").mount(form, editor)
        await self.mount(gpus, before="#tags-row")
        self._form, self._editor, self._gpus = form, editor, gpus
        with editor.prevent(TextArea.Changed):
            editor.text = self._text
        self._check()

    def on_gpu_list_ready(self) -> None:
        self._check()

    def on_screen_resume(self) -> None:
        ask = self.services.background.ask
        if not self._list.knows("builtin"):
            ask(self, "builtin", model.builtin_choices)
        ask(self, "recent", model.recent_choices)
        ask(self, "history", model.history_choices)
        ask(self, "disk", model.disk_line)
        self._asked = ()  # a run may have ended meanwhile
        self._check()

    def on_answered(self, message: Answered) -> None:
        error = message.error
        match message.key:
            case "builtin" | "recent" | "history" if error is None:
                self._list.show(message.key, message.value)
                self._list.border_subtitle = ""
            case "history":
                self._list.border_subtitle = "history: " + ("busy" if isinstance(error, HistoryBusy) else "not read")
            case "disk":
                self._disk = clean(str(error)) if error else message.value
                self._show_verdict()
            case "measured":
                self._history = f"history: {clean(error.message)}" if error else ""
                valid, placement = self._checked.valid, self._checked.placement
                if error is None and valid and placement and message.value[0] == self._asked:
                    rows, ranks = message.value[1], placement.world_size
                    self._history = model.history_line(rows, self._sku(), valid, ranks)
                self._show_verdict()
            case "start":
                self._starting = False
                if error is None:
                    self._list.focus()  # so that the keys of the screens work when the user comes back
                    self.services.open_live(message.value)
                else:
                    self._show_failure(error)

    # --- the recipe

    def on_recipe_list_chosen(self, event: RecipeList.Chosen) -> None:
        self._close_failure()
        self._set_text(event.text)

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        self._focus_view()

    def _set_text(self, text: str) -> None:
        self._text = text
        if self._editor is not None:
            with self._editor.prevent(type(self._editor).Changed):
                self._editor.text = text
        self._check()

    def on_text_area_changed(self, event: TextArea.Changed) -> None:
        if event.text_area.text != self._text:
            self._text = event.text_area.text
            self._list.edited(self._text)
            self._check()

    def on_recipe_form_edited(self, event: RecipeForm.Edited) -> None:
        self._change(event.path, event.value)

    def on_gpu_list_chosen(self, event: GpuList.Chosen) -> None:
        self._change("launch.gpus", event.gpus)

    def _change(self, path: str, value: object) -> None:
        try:
            if value is ABSENT:
                text = edit.remove(self._text, path)
            else:
                text = edit.set_value(self._text, path, value, [key.path for key in recipe_fields()])
        except LorawatchError as error:
            self.notify(f"the YAML must be fixed first (ctrl+e): {error.message}", severity="warning", markup=False)
            return
        self._set_text(text)
        self._list.edited(text)

    def _check(self) -> None:
        """Check the text, and show its values, its errors and its GPUs everywhere."""
        if not self._list.knows("builtin"):  # nothing is chosen yet
            return
        machine = self.services.machine if self._gpus is not None and self._gpus.ready else None
        checked = self._checked = model.check(self._text, machine)
        if self._form is not None:
            broken = checked.data is None
            self._form.border_title = "form: the YAML must be fixed first" if broken else "form"
            if checked.data is not None:
                self._form.show(checked.data, checked.wrong)
        if self._gpus is not None:
            self._gpus.show_chosen(checked.placement)
        if checked.error is not None:
            where = f"line {checked.line}: " if checked.line and checked.path else ""
            self._say(f"✗ {where}{str(checked.error).removeprefix('recipe: ')}", "error")
        elif checked.valid is not None and checked.placement is not None:
            self._ask_history(checked.valid)
            self._show_verdict()

    def _used(self) -> list[Gpu]:
        chosen = self._checked.placement.gpu_uuids if self._checked.placement else ()
        return [g for g in self.services.machine if g.gpu_uuid in chosen]

    def _sku(self) -> str | None:
        return " + ".join(sorted({g.sku for g in self._used()})) or None

    def _ask_history(self, valid: schema.Recipe) -> None:
        sku = self._sku()
        asked = (valid.to_dict(), self._checked.placement)
        if asked != self._asked:
            self._asked, self._history = asked, ""
            self.services.background.ask(self, "measured", lambda: (asked, model.measured(valid, sku)))

    # --- the lines below

    def _show_verdict(self) -> None:
        valid, placement = self._checked.valid, self._checked.placement
        if valid is None or placement is None or self._starting or self.has_class("failed"):
            return
        fit = model.fit_lines(valid, placement, self._used())
        lines = [f"✓ {model.plan_line(valid, placement)}", *fit, self._history, self._disk]
        self.query_one("#verdict", Static).update(Text("\n".join(filter(None, lines))))

    def _say(self, text: str, colour: str) -> None:
        style = f"bold {self.app.theme_variables.get(f'text-{colour}', '')}".strip()
        self.query_one("#verdict", Static).update(Text(clean(text), style))

    def _show_failure(self, error: LorawatchError) -> None:
        self._say("✗ not started: " + error.message.partition("\n")[0] + "\n  escape goes back to the recipe", "error")
        box = VerticalScroll(Static(Text(model.error_text(error))), id="failure")
        box.border_title = "not started"
        self.add_class("failed", "editing")
        self.query_one("#middle").mount(box)
        box.focus()

    def _close_failure(self) -> bool:
        """Whether there was one."""
        failed = self.has_class("failed")
        self.remove_class("failed")
        self.query("#failure").remove()
        if failed:
            self._check()
        return failed

    # --- keys

    def on_descendant_focus(self, event: DescendantFocus) -> None:
        self.set_class(event.widget.id != "recipes", "editing")

    def _focus_view(self) -> None:
        self.add_class("editing")
        broken = self._checked.data is None
        if broken and not self.has_class("show-text"):
            self.toggle_class("show-form", "show-text")
        if self.has_class("show-text") and self._editor is not None:
            self._editor.focus()
            if broken:
                self._editor.move_cursor(((self._checked.line or 1) - 1, 0))
        elif self._form is not None:
            self._form.focus_key()

    def action_other_view(self) -> None:
        self._close_failure()
        if self._checked.data is None and self.has_class("show-text"):
            self.notify("the YAML must be fixed before the form can show it", severity="warning")
            return
        self.toggle_class("show-form", "show-text")
        self._focus_view()

    def action_to_list(self) -> None:
        if self._close_failure():
            self._focus_view()
        else:
            self._list.focus()

    def action_start(self) -> None:
        if self._starting:
            return
        self._close_failure()
        if self._checked.valid is None or self._checked.placement is None:
            waits = self._gpus is None or not self._gpus.ready
            why = "the GPU driver has not answered yet" if waits else "the recipe is not valid yet: see below it"
            self.notify(why, severity="warning")
            return
        self._starting = True
        text, closing = self._text, self.services.background.closing
        tags = [clean(w) for w in self.query_one("#tags", Input).value.replace(",", " ").split()]
        self._say("starting …", "primary")
        self.services.background.ask(self, "start", lambda: model.start(text, tags, closing))

    def action_open(self) -> None:
        from lorawatch.screens.launch.open_file import OpenFile

        self.app.push_screen(OpenFile(), self._opened)

    def _opened(self, choice: Choice | None) -> None:
        if choice is not None:
            self._list.open(choice)
            self._close_failure()
            self._set_text(choice.text)
            self._focus_view()
