"""Curves as text: what a column shows, that nothing is hidden, and that every size is filled exactly."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from lorawatch.screens.runs.curve_axis import View, columns
from lorawatch.screens.runs.curve_drawing import draw
from lorawatch.screens.runs.curve_look import EACH, CurveLook, Question
from lorawatch.storage.curves import Curves, Evaluated, Thinned

NAN = math.nan


def thinned(values: list[float], start: float = 0.0, width: float = 1.0, highs: list[float] | None = None) -> Thinned:
    highs = highs or values
    return Thinned(start, width, values, highs, [(a + b) / 2 for a, b in zip(values, highs, strict=True)])


def curves(values: list[float], axis: str = "step", ranks: int = 0, **more: list[float]) -> Curves:
    """Steps 1 … n, or as many seconds from 1,000 on."""
    start = 1.0 if axis == "step" else 1000.0
    other = (
        {"at": [1000.0 + n for n in range(len(values))]}
        if axis == "step"
        else {"step": [float(n + 1) for n in range(len(values))]}
    )
    series = {n: thinned(v, start) for n, v in {"loss": values, **other, **more}.items()}
    whole: dict[int | None, dict[str, Thinned]] = dict.fromkeys(range(ranks), series) if ranks else {None: series}  # type: ignore[assignment]
    return Curves(axis, start, start + len(values), 1000.0, len(values), (start, start + len(values)), whole)  # type: ignore[arg-type]


def look_at(found: Curves, **more: object) -> View:
    return replace(View(found.begin, found.end, found.begin), **more)  # type: ignore[arg-type]


def text(found: Curves, view: View, width: int, height: int) -> list[str]:
    return ["".join(t for t, _ in line) for line in draw(found, view, width, height).lines]


def test_a_column_goes_from_the_lowest_to_the_highest_of_its_bins() -> None:
    curve = thinned([1, 5, 2, 2, 9, 2, 2, 2], highs=[1, 6, 2, 2, 9, 2, 3, 2])
    assert columns(curve, 0, 8, 4) == [(1, 6), (2, 2), (2, 9), (2, 3)]
    assert columns(curve, 1, 3, 4) == [(5, 6), (5, 6), (2, 2), (2, 2)], "a wide bin fills its columns"
    assert columns(curve, 20, 30, 2) == [None, None]


def test_a_value_holds_to_the_next_and_a_pause_stays_empty() -> None:
    every_third = thinned([1.0, NAN, NAN, 2.0, NAN, NAN, 3.0, NAN, NAN, *[NAN] * 9, 4.0, NAN])
    found = columns(every_third, 0, 20, 20)
    assert [c and c[0] for c in found[:7]] == [1, 1, 1, 2, 2, 2, 3]
    assert found[7:18] == [None] * 11
    assert found[18] == (4.0, 4.0)


def test_a_single_spike_among_many_bins_is_drawn_at_the_top() -> None:
    found = curves([2.0] * 250 + [50.0] + [2.0] * 249)
    lines = text(found, look_at(found), 119, 20)  # 100 cells
    assert "50" in lines[1]
    spike = next(x for x, char in enumerate(lines[1][19:]) if char not in " │")
    assert spike == 50


def test_a_small_spike_beside_its_mean_is_drawn_too() -> None:
    found = curves([2.0] * 100, loss=[])
    highs = [50.0 if n == 10 else 6.0 if n == 60 else 2.0 for n in range(100)]
    found.series[None]["loss"] = Thinned(1.0, 1.0, [2.0] * 100, highs, [2.0] * 100)
    bottom = text(found, look_at(found), 119, 14)[10][19:]
    calm, small = bottom[59], bottom[60]
    assert (ord(small) - 0x2800).bit_count() > (ord(calm) - 0x2800).bit_count() > 0


@pytest.mark.parametrize("size", [(16, 3), (21, 4), (40, 7), (61, 9), (80, 19), (141, 31), (160, 45)])
@pytest.mark.parametrize("axis", ["time", "step"])
@pytest.mark.parametrize("ranks", [0, 1, 8, 64])
def test_every_size_is_filled_exactly(size: tuple[int, int], axis: str, ranks: int) -> None:
    values = [2.0 + math.sin(n) for n in range(60)]
    more = dict.fromkeys(("tok_s", "power_w", "memory_bytes", "temperature_c"), values)
    found = curves(values, axis, ranks, **more)
    for metric in (None, "loss", "power_w"):
        lines = text(found, look_at(found, each=ranks > 0, metric=metric, cursor=found.begin + 30), *size)
        assert len(lines) == size[1]
        assert max(map(len, lines)) <= max(size[0], 21)


def test_the_cursor_names_step_time_and_values() -> None:
    found = curves([3.0, 2.0, 1.0, 4.0], power_w=[100.0, 200.0, 300.0, 400.0])
    lines = text(found, look_at(found, cursor=3.5), 99, 14)
    assert lines[-1].startswith(" step 3 of 4 · 0:02.0 into the run · ")
    assert lines[2].split()[0] == "1"
    assert "300" in "\n".join(lines)
    over_time = curves([3.0, 2.0, 1.0, 4.0], "time")
    assert text(over_time, look_at(over_time, cursor=1001.5), 99, 14)[-1].startswith(
        " step 2 of 4 · 0:01.52 into the run"
    )
    late = replace(over_time, begin=990.0)
    assert text(late, replace(look_at(late), cursor=991.0), 99, 14)[-1].startswith(" before the first step of 4")


def test_many_values_under_the_cursor_are_a_range_with_its_mean() -> None:
    found = curves([1.0] * 100, loss=[])
    found.series[None]["loss"] = thinned([1.0] * 100, 1.0, highs=[2.0] * 100)
    lines = text(found, look_at(found), 99, 14)
    assert [line[:19].split() for line in lines[1:4]] == [["loss", "2"], ["mean", "1.5"], ["1–2"]]


def test_a_loss_that_was_no_number_is_marked_even_where_all_are() -> None:
    found = curves([1.0] * 10, loss_bad=[NAN] * 4 + [1.0] + [NAN] * 5)
    lines = text(found, look_at(found, cursor=5.5), 119, 14)
    assert lines[1].count("✗") == 1
    assert "NaN" in lines[2]
    all_bad = curves([NAN] * 10, loss_bad=[1.0] * 10)
    lines = text(all_bad, look_at(all_bad), 119, 14)
    assert "✗" in lines[1]
    assert "—" in lines[1]


def test_evaluations_are_marks_at_their_steps_and_heights_with_a_legend() -> None:
    found = curves([3.0] * 50 + [2.0] * 50)
    made = {10: 4.0, 50: 1.0, 100: 2.0}
    found.evaluations[0] = [Evaluated(n, 1000.0 + n - 0.5, loss) for n, loss in made.items()]
    lines = text(found, look_at(found, cursor=60.5), 119, 20)  # a cell a step
    marks = {
        x - 18: (char, y)
        for y, line in enumerate(lines[1:-2])
        for x, char in enumerate(line)
        if char in "◆★" and x > 18
    }
    assert {step: char for step, (char, _) in marks.items()} == {10: "◆", 50: "★", 100: "◆"}
    assert marks[10][1] == 0, "the highest of all is at the top: the scale has the marks in it"
    assert marks[50][1] == max(y for _, y in marks.values()) > marks[100][1]
    assert lines[1].split()[1][0] == "4"
    assert lines[0].endswith("· ◆ eval loss 1 · ★ lowest 1")
    early = text(found, look_at(found, cursor=5.0), 119, 20)
    assert early[0].endswith("· ◆ eval loss · ★ lowest 1"), "there was none up to here"
    part = text(found, look_at(found, begin=90.0, end=101.0, cursor=95.5), 119, 20)
    assert sum(line.count("◆") + line.count("★") for line in part[1:]) == 1
    over_time = curves([3.0] * 100, "time")
    over_time.evaluations.update(found.evaluations)
    assert "★" in "".join(text(over_time, look_at(over_time), 119, 20)[1:])
    other = text(replace(found, series={None: {"tok_s": thinned([1.0] * 100, 1.0)}}), look_at(found), 119, 20)
    assert "◆" not in "".join(other), "no legend where there is no loss"


def test_evaluations_stand_in_each_rows_own_curve() -> None:
    found = curves([3.0] * 60, ranks=2)
    found.evaluations[0] = [Evaluated(30, 0.0, 2.0)]
    lines = text(found, look_at(found, each=True), 120, 20)
    assert lines[0].endswith("· ◆ eval loss, ★ the lowest")
    assert sum(line.count("★") for line in lines[1:]) == 2, "ranks that train together share it"
    found.evaluations[1] = [Evaluated(30, 0.0, 5.0), Evaluated(60, 0.0, 4.0)]
    lines = text(found, look_at(found, each=True), 120, 20)
    assert sum(line.count("★") for line in lines[1:]) == 2
    assert sum(line.count("◆") for line in lines[1:]) == 1


def test_ranks_in_rows_name_each_and_say_what_is_hidden() -> None:
    found = curves([float(n) for n in range(60)], ranks=64)
    lines = text(found, look_at(found, each=True), 80, 19)
    assert [line.split()[1] for line in lines if line.startswith(" rank ")] == [str(n) for n in range(15)]
    assert "ranks 0–14 seen" in lines[0]
    lines = text(found, look_at(found, each=True, top=49), 80, 19)
    assert " rank 63" in "\n".join(lines)


def test_several_plots_say_where_each_begins_and_ends() -> None:
    found = curves([1.0] * 60, ranks=2, tok_s=[1.0] * 60)
    assert text(found, look_at(found, each=True), 160, 19)[-2] == " each from step 1 to step 60"
    found = curves([1.0] * 60, "time", ranks=2, tok_s=[1.0] * 60)
    assert text(found, look_at(found, each=True), 160, 19)[-2] == " each from 0:00 to 1:00"


def whole(axis: str = "time", n: int = 1000, each: bool = False, **more: list[float]) -> Curves:
    return curves([1.0] * n, axis, 2 if each else 0, **more)


def test_looking_closer_asks_once_and_keeps_the_old_curves_until_the_answer() -> None:
    asked: list[Question] = []
    look = CurveLook(asked.append)
    look.take(look.question, whole())
    assert asked == []
    look.go(1500.0)
    look.zoom(0.25)
    assert look.window == (1375.0, 1625.0)
    assert asked == [Question("time", False, (1250.0, 1750.0))]
    assert look.waiting
    assert look.curves is look.whole
    look.go(1520.0)
    assert len(asked) == 1, "a small move needs no question"
    fine = replace(whole(), window=(1250.0, 1750.0))
    look.take(asked[0], fine)
    assert look.curves is fine
    assert not look.waiting
    look.zoom(0)
    assert look.window is None
    assert look.curves is look.whole


def test_what_grows_is_read_again_without_losing_the_place() -> None:
    asked: list[Question] = []
    look = CurveLook(asked.append)
    look.take(look.question, whole(n=1000))
    look.go(1990.0)
    look.zoom(0.1)
    window = look.window
    assert window == (1891.0, 1991.0)
    look.take(asked[-1], replace(whole(n=1000), window=asked[-1].window))
    look.take(look.question, whole(n=1100))
    assert (look.window, look.cursor) == (window, 1990.0)
    assert asked[-1].window == (1841.0, 2041.0), "what was read reached the end, so it is asked for again"
    middle = CurveLook(asked.append)
    middle.take(middle.question, whole(n=1000))
    middle.take(middle.question, whole(n=1100))
    assert middle.window is None
    view = middle.view()
    assert view is not None
    assert view.end == 2100.0


def test_turning_the_axis_keeps_the_part_that_is_seen() -> None:
    asked: list[Question] = []
    look = CurveLook(asked.append)
    look.take(look.question, whole())
    look.go(1500.5)
    look.zoom(0.5)
    look.turn_axis()
    assert look.axis == "time", "until the answer is there"
    look.take(asked[-1], whole("step"))
    assert (look.axis, look.window, look.cursor) == ("step", (251.0, 752.0), 501.5)
    look.turn_axis()
    assert (look.axis, look.window) == ("time", (1250.0, 1751.0))


def test_ranks_are_gone_through_in_both_directions() -> None:
    asked: list[Question] = []
    look = CurveLook(asked.append)
    look.take(look.question, whole())
    look.turn_part(True)
    assert asked == [Question("time", True)]
    look.take(asked[0], whole(each=True))
    seen = [(look.part, look.rank)]
    for _ in range(4):
        look.turn_part(True)
        if look.question not in asked or look.part is None:
            look.take(Question("time", False), whole())
        seen.append((look.part, look.rank))
    assert seen[:4] == [(0, 0), (1, 1), (EACH, None), (None, None)]
    look = CurveLook(asked.append)
    look.take(look.question, whole())
    look.turn_part(False)
    look.take(Question("time", True), whole(each=True))
    assert look.part == EACH
