"""The registry of metrics: what is read of a GPU, of the host and of a step, and how each is kept and shown.

A metric stands in one place, at its field of `GpuSample` or `HostSample`, or in `STEP_METRICS`. From there the lanes know
what to read, the history its columns, Live its panes, a run's page its curves and ranks, the headless display its columns,
and the README its table. To add one: a field here with its `Metric`, and a reader of that name in the driver
(`lorawatch/telemetry`).
"""

# Annotations are read as they stand here, so that they must be values and not text.
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from lorawatch.run.line import Bytes, Celsius, Joules, Mask, Megahertz, Percent, Record, UnixTime, Watts
from lorawatch.text.numbers import MISSING

Lane = Literal["fast", "slow", "host", "step"]
"""Who writes a reading: the lane of a few microseconds a call (`measure.sample_hz` times a second), that of slow calls and
that of the host (each once a second), or a rank after its step."""
Taken = Literal["first", "each", "turns"]
"""When, in its lane. `first`: the lane takes it itself, because the line's time is this reading's; `each`: it is on every
line of the lane; `turns`: of the lane's metrics of this kind each line has the next one."""
Over = Literal["mean", "max", "last"]
"""How a metric is read over a window."""


def _whole(value: float) -> str:
    return f"{value:,.0f}"


def _one_digit(value: float) -> str:
    return f"{value:,.1f}"


def _gib(value: float) -> str:
    return f"{value / 2**30:.1f}"


def _whole_gib(value: float) -> str:
    return f"{value / 2**30:.0f}"


def _milliseconds(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _loss(value: float) -> str:
    return f"{value:.4f}"


def _four_figures(value: float) -> str:
    return f"{value:.4g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    """A metric's curve on a run's page; its axis goes from the lowest to the highest value seen.

    Attributes:
        name: Its metric's.
        label: Heading with the unit; its first word stands alone where there is little room.
        part: Its colour: `curve`, `power`, `memory` or `heat`.
        write: A value as text.
        first: It stands above those that are not.
    """

    name: str = ""
    label: str
    part: str = "curve"
    write: Callable[[float], str] = _whole
    first: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """All that is known of a metric.

    Attributes:
        column: Its column in the history and its key in a journal line, the unit at the end; empty where it is computed
            from other columns.
        name: Its key in panes and curves; the column's where it is left out.
        label: A short word for people; empty where it is kept and not shown.
        unit: As people read it.
        comment: What it is: the column's comment, and the README's.
        lane: Who writes it.
        taken: When, in its lane.
        sql: The column's type.
        over: How it is read over a window: of a rank's measured steps, say.
        write: A value as text, without the unit.
        size: Whether it shows large in a pane, with a curve of its own height, or small. Of the host: in one line.
        named: Its label stands before it also in a line with others, where the unit does not say what it is.
        optional: Many cards have no such reading: it shows where there is one, and takes no place where there is none.
        axis: Where the axis of its curve in a pane begins: at `zero`, or at the `lowest` value seen.
        top: Where that axis ends; None: at the metric's limit, or a little above the highest value seen.
        limit: The column that says how much there is of it.
        part: Colour of its curve in a pane.
        ranks: Heading on the page of a run's ranks, which shows it read `over` the measured steps; empty: not there.
        plot: Its curve on a run's page; None: it has none.
    """

    column: str = ""
    name: str = ""
    label: str = ""
    unit: str = ""
    comment: str
    lane: Lane
    taken: Taken = "each"
    sql: Literal["DOUBLE", "INTEGER", "BIGINT"] = "DOUBLE"
    over: Over | None = None
    write: Callable[[float], str] = _whole
    size: Literal["large", "small"] = "small"
    named: bool = False
    optional: bool = False
    axis: Literal["zero", "lowest"] = "zero"
    top: float | None = None
    limit: str = ""
    part: str = "curve"
    ranks: str = ""
    plot: Plot | None = None

    @property
    def suffix(self) -> str:
        """The unit as it follows a value."""
        return self.unit if self.unit in ("%", "") else f" {self.unit}"

    def value(self, sample: Record | None) -> Any:
        """Its reading in a sample; None where there is none."""
        return None if sample is None else getattr(sample, self.column)

    def text(self, value: float | None) -> str:
        """A value without its unit: `193`, `24.9`, `—`."""
        return MISSING if value is None else self.write(value)

    def figure(self, value: float | None, limit: str = "") -> str:
        """`193/200 W`, `24.9 GiB`, `99%`, `— W`.

        Args:
            limit: How much there is, written out.
        """
        return self.text(value) + (f"/{limit}" if limit else "") + self.suffix


class GpuSample(Record, tag="gpu"):
    """One GPU at a moment. What was not read at that moment is absent: the slow lane's readings are on one line a second."""

    sampled_at: UnixTime
    gpu_uuid: str
    power_w: Annotated[
        Watts | None,
        Metric(
            label="power", unit="W", comment="Instant power, watts.", lane="fast", taken="first", over="mean", size="large",
            limit="power_limit_w", part="power", ranks="mean W", plot=Plot(label="W per GPU", part="power"),
        ),
    ] = None  # fmt: skip
    power_average_w: Annotated[
        Watts | None,
        Metric(comment="The driver's own average over 1 s, watts.", unit="W", lane="fast", taken="first", over="mean"),
    ] = None
    energy_j: Annotated[
        Joules | None,
        Metric(
            comment="The card's energy counter since the driver was loaded, joules.",
            unit="J",
            lane="slow",
            taken="first",
        ),
    ] = None
    memory_used_bytes: Annotated[
        Bytes | None,
        Metric(
            name="memory_bytes", label="VRAM", unit="GiB", comment="Memory in use, bytes.", lane="fast", sql="BIGINT",
            over="max", write=_gib, size="large", part="memory", plot=Plot(label="VRAM GiB", part="memory", write=_gib),
        ),
    ] = None  # fmt: skip
    utilization_pct: Annotated[
        Percent | None,
        Metric(
            label="util", unit="%", comment="Share of time in which a kernel ran, percent.", lane="fast", over="mean",
            top=100.0,
        ),
    ] = None  # fmt: skip
    temperature_c: Annotated[
        Celsius | None,
        Metric(
            label="temp", unit="°C", comment="Core temperature, °C.", lane="slow", over="max", ranks="max °C",
            plot=Plot(label="°C", part="heat"),
        ),
    ] = None  # fmt: skip
    memory_temperature_c: Annotated[
        Celsius | None,
        Metric(
            label="mem", unit="°C", comment="Memory temperature, °C; many cards have no sensor there.", lane="slow",
            over="max", named=True, optional=True, ranks="max mem °C", plot=Plot(label="mem °C", part="heat"),
        ),
    ] = None  # fmt: skip
    sm_clock_mhz: Annotated[
        Megahertz | None,
        Metric(
            label="clock", unit="MHz", comment="SM clock, MHz.", lane="fast", taken="turns", sql="INTEGER", over="mean"
        ),
    ] = None
    memory_clock_mhz: Annotated[
        Megahertz | None, Metric(comment="Memory clock, MHz.", unit="MHz", lane="slow", sql="INTEGER", over="mean")
    ] = None
    event_reasons: Annotated[
        Mask | None,
        Metric(
            comment="Why the clocks are not higher, a sum: 1 idle, 2 clocks set, 4 power cap, 8 hardware slowdown, "
            "16 sync boost, 32 software thermal limit, 64 hardware thermal limit, 128 power brake, 256 display clock, "
            "512 board limit, 1024 reliability; 0 none.",
            lane="fast", taken="turns", sql="BIGINT",
        ),
    ] = None  # fmt: skip
    power_limit_w: Annotated[
        Watts | None, Metric(comment="Enforced power limit, watts.", unit="W", lane="slow", over="last")
    ] = None


class HostSample(Record, tag="host"):
    """The host at a moment."""

    sampled_at: UnixTime
    host: str
    cpu_pct: Annotated[
        Percent | None,
        Metric(
            label="CPU", unit="%", comment="Of all cores together: 100 is every core busy.", lane="host", over="mean"
        ),
    ] = None
    memory_used_bytes: Annotated[
        Bytes | None,
        Metric(
            label="memory", unit="GiB", comment="Memory in use, bytes.", lane="host", sql="BIGINT", over="max", write=_gib,
            limit="memory_total_bytes",
        ),
    ] = None  # fmt: skip
    memory_total_bytes: Annotated[
        Bytes | None,
        Metric(comment="Memory, bytes.", unit="GiB", lane="host", sql="BIGINT", over="last", write=_whole_gib),
    ] = None
    workers_cpu_pct: Annotated[
        Percent | None,
        Metric(
            comment="Of one core, summed over the run's processes: 200 is two cores busy.", unit="%", lane="host",
            over="mean",
        ),
    ] = None  # fmt: skip
    workers_rss_bytes: Annotated[
        Bytes | None,
        Metric(
            label="workers", unit="GiB", comment="Resident memory of the run's processes, bytes.", lane="host",
            sql="BIGINT", over="max", write=_gib, optional=True,
        ),
    ] = None  # fmt: skip
    disk_free_bytes: Annotated[
        Bytes | None,
        Metric(
            label="disk free", unit="GiB", comment="Free space where the runs are kept, bytes.", lane="host", sql="BIGINT",
            over="last", write=_whole_gib,
        ),
    ] = None  # fmt: skip
    package_energy_j: Annotated[
        Joules | None,
        Metric(comment="RAPL's counter over all CPU packages, unwrapped, joules.", unit="J", lane="host"),
    ] = None


def _metrics(kind: type[Record]) -> tuple[Metric, ...]:
    """The metrics that stand at a sample's fields, in order, with the fields' names."""
    return tuple(
        replace(metric, column=field, name=metric.name or field)
        for field, annotation in kind.__annotations__.items()
        for metric in getattr(annotation, "__metadata__", ())
        if isinstance(metric, Metric)
    )


GPU_METRICS = _metrics(GpuSample)
"""What is read of a GPU."""
HOST_METRICS = _metrics(HostSample)
"""What is read of the host."""
STEP_METRICS = (
    Metric(
        name="tok_s", label="tok/s", comment="Tokens over the wall time of the same steps.", lane="step", size="large",
        named=True, plot=Plot(label="tok/s"),
    ),
    Metric(
        name="step_ms", label="step", unit="ms", comment="Wall time of a step.", lane="step", write=_milliseconds,
        size="large", named=True,
    ),
    Metric(
        name="loss", label="loss", comment="Mean loss over the label tokens.", lane="step", write=_loss, size="large",
        named=True, axis="lowest", plot=Plot(label="loss", write=_four_figures, first=True),
    ),
    Metric(
        name="data_wait_ms", label="data", unit="ms", comment="Time a step waited for its batch.", lane="step",
        write=_one_digit, size="large",
    ),
)  # fmt: skip
"""What is computed of a rank's steps; the columns are those of `steps`."""
PANE_METRICS = tuple(m for m in (*STEP_METRICS, *GPU_METRICS) if m.label)
"""What a pane of Live shows, from top to bottom."""
PLOTS = tuple(
    sorted((replace(m.plot, name=m.name) for m in PANE_METRICS if m.plot is not None), key=lambda p: not p.first)
)
"""What has a curve on a run's page, from top to bottom."""
TABLES: Mapping[str, tuple[Metric, ...]] = {"gpu_samples": GPU_METRICS, "host_samples": HOST_METRICS}
"""By table of the history, the metrics that are its columns."""


def of_lane(lane: Lane, taken: Taken = "each") -> tuple[Metric, ...]:
    """The metrics of a GPU that a lane reads in this way, in order."""
    return tuple(m for m in GPU_METRICS if m.lane == lane and m.taken == taken)
