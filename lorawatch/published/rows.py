"""A published table's rows, its source, and the cells that contradict its own figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class PublishedRow:
    """A row of a published table: a configuration's figures, or its epoch time over a data set.

    Attributes:
        source: Who published it.
        sku: The GPU model, by its short name where it has one.
        gpu_count: GPUs used.
        tok_s, tok_s_per_gpu: Tokens a second, of all GPUs and of each.
        scaling: tok/s over tok/s of one GPU.
        efficiency_pct: Scaling efficiency, percent.
        avg_power_w: Mean power, watts.
        tok_per_j: Tokens a joule, the same number as tok/s per watt.
        dataset, dataset_tokens: A data set's name and size.
        epoch_time, epoch_s: Its epoch time as printed, and in seconds.
        url, note, title: The table's address, a remark on the row, the table's title.
        work: What was trained, as a part of a recipe; None where the table does not state it.
        printed: The cells as printed, by column; empty cells are left out.
    """

    source: str
    sku: str
    gpu_count: int
    tok_s: float | None = None
    tok_s_per_gpu: float | None = None
    scaling: float | None = None
    efficiency_pct: float | None = None
    avg_power_w: float | None = None
    tok_per_j: float | None = None
    dataset: str | None = None
    dataset_tokens: int | None = None
    epoch_time: str | None = None
    epoch_s: float | None = None
    url: str | None = None
    note: str | None = None
    title: str | None = None
    work: Mapping[str, Any] | None = None
    printed: Mapping[str, str] = field(default_factory=dict)

    @property
    def what(self) -> str:
        """`RTX PRO 5000 × 2`, with the data set where there is one."""
        name = f"{self.sku} × {self.gpu_count}"
        return f"{name}, {self.dataset}" if self.dataset else name


@dataclass(frozen=True)
class PublishedSource:
    """The package's description of a table that it ships.

    Attributes:
        source: The rows' source.
        publisher, title, url: The publisher, the title and the address.
        method: What was measured and how, in a few lines.
        work: What was trained, as a part of a recipe.
        notes: Remarks, each with the rows (SKU, GPU count) it is about.
        files: The tables' files.
        skus: The tables' name of a GPU → its short name.
    """

    source: str
    publisher: str
    title: str
    method: str
    work: Mapping[str, Any]
    files: tuple[str, ...]
    skus: Mapping[str, str]
    notes: tuple[tuple[str, tuple[tuple[str, int], ...]], ...] = ()
    url: str | None = None


@dataclass(frozen=True)
class Difference:
    """A printed cell that the table's own figures do not give.

    Attributes:
        row: The row of the cell.
        column: The row's column.
        printed: As printed.
        computed: The figure that follows; seconds for an epoch time.
        reason: The arithmetic, for people.
    """

    row: PublishedRow
    column: str
    printed: str
    computed: float
    reason: str
