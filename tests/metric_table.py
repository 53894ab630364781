"""The README's table of metrics: `python tests/metric_table.py` writes it from the registry."""

from __future__ import annotations

from pathlib import Path

from lorawatch.run.metrics import GPU_METRICS, HOST_METRICS, STEP_METRICS, Metric

README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- metrics -->\n", "<!-- /metrics -->\n"
_HEAD = ("column", "what", "written", "over a window", "shows as")
_WRITTEN = {"fast": "`measure.sample_hz`", "slow": "1 Hz", "host": "1 Hz", "step": "each step"}


def table() -> str:
    """The registry as Markdown."""
    lines = [_HEAD, ("---",) * len(_HEAD)]
    lines += [_row(where, m) for where, ms in (("GPU", GPU_METRICS), ("host", HOST_METRICS)) for m in ms]
    lines += [_row("rank", m) for m in STEP_METRICS]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _row(where: str, metric: Metric) -> tuple[str, ...]:
    shows = [f"{metric.label} {metric.unit}".strip()] if metric.label else []
    shows += ["curve"] if metric.plot is not None else []
    shows += [f"{metric.ranks} of ranks"] if metric.ranks else []
    column = f"`{metric.column}`" if metric.column else "—"
    written = _WRITTEN[metric.lane] + (", by turns" if metric.taken == "turns" else "")
    return column, f"{where}: {metric.comment.rstrip('.')}", written, metric.over or "—", ", ".join(shows) or "—"


def written(readme: str) -> str:
    """A README with the table in its place."""
    before, _, rest = readme.partition(BEGIN)
    return before + BEGIN + "\n" + table() + "\n" + END + rest.partition(END)[2]


if __name__ == "__main__":
    README.write_text(written(README.read_text()))
