"""The only import of DuckDB.

The compiled module is imported without the package around it: the package's relational API costs 50 ms and 12 MB at
import and nothing here uses it. The dependency is pinned below the next minor version.
"""

from __future__ import annotations

try:
    import _duckdb as duckdb
except ImportError:  # a build with another name for its compiled module
    import duckdb  # type: ignore[no-redef]

Connection = duckdb.DuckDBPyConnection
Error = duckdb.Error

__all__ = ["Connection", "Error", "duckdb", "roll_back"]


def roll_back(connection: Connection) -> None:
    """End a transaction after a failure, which may have ended it already; the first failure is the one to report."""
    try:
        connection.execute("ROLLBACK")
    except Error:
        return
