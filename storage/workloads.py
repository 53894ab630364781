"""The column `workload`, by which runs of the same work are found, and its older definitions brought to the present one.

A digest of an older definition never equals one of today's: a new run would be compared with none of the earlier ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from lorawatch.storage.engine import Connection, roll_back

_DIGEST = "work-2:"
"""How a digest begins. The number rises with every change of what `recipe.identity` takes for the same work."""
_COMMAND = "command:"
_STALE = "NOT (starts_with(s.workload, ?) OR starts_with(s.workload, ?))"


def workload(recipe: Mapping[str, Any] | None, command_name: str | None = None) -> str:
    """The column's value for a run: equal for runs of the same work.

    Args:
        recipe: Plain data; None or empty for an own command.
        command_name: The own command's name. What it computes is not known, so that it equals itself alone.
    """
    if not recipe:
        return f"{_COMMAND}{command_name}"
    from lorawatch.models.shapes import canonical  # with YAML and a table, which a reader of the history does without
    from lorawatch.recipe.identity import digest

    return _DIGEST + digest(canonical(recipe))


def stale(connection: Connection) -> bool:
    """Whether some run's digest is of an older definition; one small question."""
    question = f"SELECT 1 FROM run_summary AS s WHERE {_STALE} LIMIT 1"  # noqa: S608  text of this module
    return connection.execute(question, [_DIGEST, _COMMAND]).fetchone() is not None


def refresh(connection: Connection) -> bool:
    """Derive digests of an older definition from their runs' recipes; one transaction.

    Returns:
        Whether there were some.
    """
    rows = connection.execute(
        f"SELECT s.run_id, r.recipe, r.name FROM run_summary AS s LEFT JOIN runs AS r ON r.run_id = s.run_id WHERE {_STALE}",  # noqa: S608
        [_DIGEST, _COMMAND],
    ).fetchall()
    if not rows:
        return False
    digests: dict[str, str] = {}
    for run_id, text, name in rows:
        recipe = msgspec.json.decode(text) if text else None
        digests[run_id] = workload(recipe if isinstance(recipe, dict) else None, name)
    connection.execute("BEGIN")
    try:
        connection.execute(
            "UPDATE run_summary SET workload = n.workload "
            "FROM (SELECT unnest($1::VARCHAR[]) AS run_id, unnest($2::VARCHAR[]) AS workload) AS n "
            "WHERE run_summary.run_id = n.run_id",
            [list(digests), list(digests.values())],
        )
        connection.execute("COMMIT")
    except BaseException:
        roll_back(connection)
        raise
    return True
