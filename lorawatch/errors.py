"""The errors a user can meet: each says what happened, where, and what to do next."""

from __future__ import annotations

from lorawatch.text.sanitize import clean


class LorawatchError(Exception):
    """Base class of every error that lorawatch reports to its user as one clean message.

    Attributes:
        message: What happened and where, one sentence.
        hint: What to do next, or None.
        exit_code: The process's exit status when the error ends a command.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  {self.hint}" if self.hint else self.message

    def __rich__(self) -> str:
        # A crash report prints this one line, never a frame's locals.
        return clean(str(self)).replace("[", r"\[")


class UsageError(LorawatchError):
    """The command line, or a file it names, is wrong."""

    exit_code = 2


class RecipeError(UsageError):
    """A recipe has an unknown key, a value of the wrong type, or values that contradict each other."""


class DataError(UsageError):
    """A data set is missing, empty or unreadable; the message names file and line."""


class MissingDependency(LorawatchError):
    """A package, a driver or a program that the command needs is not there."""

    exit_code = 3


class NoSuitableGpu(LorawatchError):
    """The GPUs asked for are not there, or have too little free memory."""

    exit_code = 3


class ModelNotFound(LorawatchError):
    """The model is in no local folder, no cache, and no hub can be reached."""

    exit_code = 3


class CheckpointError(UsageError):
    """A checkpoint is absent, damaged, or belongs to other work than the run that should go on from it."""


class LossNotFinite(LorawatchError):
    """The loss of a rank became NaN or infinite, and the recipe asks to stop there."""


class RunNotFound(UsageError):
    """No run directory and no recorded run has that id or name."""


class RunBusy(LorawatchError):
    """Another lorawatch is deciding what becomes of the run."""


class RunElsewhere(LorawatchError):
    """Another host, or another container, looks after the run, or was the last to do so."""


class HistoryError(LorawatchError):
    """The history file cannot be used as it is."""


class HistoryBusy(HistoryError):
    """Another process holds the history; what was to be written waits in the journals."""


class JournalUnreadable(HistoryError):
    """A journal cannot be read; all other journals of its run are in the history."""


class HistoryTooNew(HistoryError):
    """The history was written by a newer lorawatch."""


class HistoryDamaged(HistoryError):
    """The history's file is damaged, is no DuckDB database, or is not whole yet after it was damaged.

    Attributes:
        certain: Whether its content says so; otherwise DuckDB failed inside, and damage may be behind it.
        file: Which file that was (`storage.files.identity`), so that it is not taken for the one that replaces it.
        answered: Whether a part of an answer is out already, so that it cannot be given again.
    """

    answered = False

    def __init__(
        self, message: str, *, hint: str | None = None, certain: bool = True, file: tuple[int, int] | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.certain = certain
        self.file = file
