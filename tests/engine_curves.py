"""The picture of the engines' loss curves: `python tests/engine_curves.py`, from tests/data/demo_curves.json.

`tests/benchmarks/curves.py --out tests/data/demo_curves.json` makes the data. Above, each engine's losses; below, how far the
fast engine and FP8 lie from the reference, step by step. Writes assets/screenshots/engines.png.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from pictures import DATA, FOLDER, draw

from lorawatch.comparing.charts import ticks

COLOURS = {"reference": "#94a3b8", "fast": "#60a5fa", "fp8": "#f59e0b"}
WIDTHS = {"reference": 6, "fast": 2.5, "fp8": 1.5}
WIDE, LEFT, RIGHT = 1120, 70, 20


def panel(series: dict[str, Sequence[float]], top: int, high: int, unit: str, title: str) -> list[str]:
    """One chart over the steps."""
    values = [v for line in series.values() for v in line]
    marks = ticks(min(values), max(values))
    steps = max(len(line) for line in series.values())

    def x(step: float) -> float:
        return LEFT + (WIDE - LEFT - RIGHT) * (step - 1) / (steps - 1)

    def y(value: float) -> float:
        return top + high - high * (value - marks[0]) / (marks[-1] - marks[0])

    parts = [f'<text class="title" x="{LEFT}" y="{top - 14}">{title}</text>']
    for mark in marks:
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDE - RIGHT}" y1="{y(mark):.1f}" y2="{y(mark):.1f}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y(mark) + 4:.1f}" text-anchor="end">{mark:,.6g}{unit}</text>')
    parts += [
        f'<text x="{x(step):.1f}" y="{top + high + 18}" text-anchor="middle">{step}</text>'
        for step in (1, *range(steps // 4, steps + 1, steps // 4))
    ]
    for name, line in series.items():
        points = " ".join(f"{x(i):.1f},{y(v):.1f}" for i, v in enumerate(line, 1))
        parts.append(
            f'<polyline fill="none" stroke="{COLOURS[name]}" stroke-width="{WIDTHS[name]}" points="{points}"/>'
        )
    return parts


def picture(losses: dict[str, list[float]]) -> str:
    """Both charts with a legend, as SVG."""
    reference = losses["reference"]
    apart = {
        name: [100 * (a / b - 1) for a, b in zip(line, reference, strict=True)]
        for name, line in losses.items()
        if name != "reference"
    }
    words = {
        "reference": "reference: transformers' Trainer",
        "fast": "fast: compiled",
        "fp8": "fast with FP8 base weights (rounded as on a GPU, on the CPU)",
    }
    parts = [
        f'<svg viewBox="0 0 {WIDE} 640" xmlns="http://www.w3.org/2000/svg">',
        "<style>text{font:13px sans-serif;fill:#cbd5e1}.title{font-weight:bold;fill:#fff}.grid{stroke:#334155}</style>",
        f'<rect width="{WIDE}" height="640" fill="#0f172a"/>',
    ]
    place = LEFT
    for name in losses:
        parts.append(
            f'<line x1="{place}" x2="{place + 26}" y1="24" y2="24" stroke="{COLOURS[name]}" stroke-width="4"/>'
        )
        parts.append(f'<text x="{place + 34}" y="28">{words[name]}</text>')
        place += 70 + 7 * len(words[name])
    parts += panel(
        losses, 76, 300, "", f"loss, {len(reference)} steps of SmolLM2-135M-Instruct on the demo's chats, one seed"
    )
    parts += panel(apart, 446, 160, "%", "from the reference's loss of the same step")
    return "\n".join([*parts, "</svg>"])


if __name__ == "__main__":
    draw(picture(json.loads((DATA / "demo_curves.json").read_text(encoding="utf-8"))), FOLDER / "engines.png")
    print(FOLDER / "engines.png")
