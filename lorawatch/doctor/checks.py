"""What works on this machine, and what to do about what does not. Works with anything missing."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable
from dataclasses import asdict

from lorawatch.doctor.check import Check, CheckStatus
from lorawatch.text.sanitize import clean, escaped_json

__all__ = ["Check", "render", "run_checks", "to_json"]

_WIDTH = 80
_NAME_WIDTH = 16
_WORDS: dict[CheckStatus, str] = {"ok": "ok", "info": "info", "warn": "WARN", "fail": "FAIL"}


def run_checks() -> list[Check]:
    """Look at everything a run needs. Takes seconds: torch is asked in a process of its own.

    Nothing is changed on the machine but a temporary file in lorawatch's home, or beside where it will be.
    """
    from lorawatch.doctor import gpu, host

    checks: list[Check] = []
    groups: tuple[tuple[str, Callable[[], list[Check]]], ...] = (
        ("system", host.system),
        ("packages", host.packages),
        ("GPUs and torch", gpu.gpus_and_torch),
        ("storage", host.storage),
        ("models", host.models),
        ("limits", host.limits),
    )
    for name, look in groups:
        try:
            checks += look()
        except Exception as error:  # noqa: BLE001 - a check that breaks is itself a finding
            checks.append(Check(name, "warn", f"could not be checked: {type(error).__name__}: {error}"))
    return checks


def render(checks: list[Check]) -> str:
    """The findings as plain text, at most 80 columns wide."""
    lines: list[str] = []
    for check in checks:
        head = f"{_WORDS[check.status]:<5} {clean(check.name):<{_NAME_WIDTH}} "
        lines += _wrapped(check.found, head)
        if check.advice:
            lines += _wrapped(check.advice, " " * (len(head) - 2) + "→ ")
    warned, failed = (sum(c.status == s for c in checks) for s in ("warn", "fail"))
    if failed:
        verdict = f"{failed} problem{'s' * (failed > 1)} must be fixed before runs work."
    elif warned:
        verdict = f"Runs work here; {warned} thing{'s' * (warned > 1)} to look at."
    else:
        verdict = "Everything that was looked at works."
    return "\n".join([*lines, "", verdict])


def to_json(checks: list[Check]) -> str:
    """The findings as one JSON array, for machines."""
    return escaped_json(json.dumps([asdict(c) for c in checks], indent=1, ensure_ascii=False))


def _wrapped(text: str, head: str) -> list[str]:
    return textwrap.wrap(
        " ".join(clean(text).split()), _WIDTH, initial_indent=head, subsequent_indent=" " * len(head)
    ) or [head.rstrip()]
