"""The end of a run that no recorder watched: the last attempt's, whoever wrote last."""

from __future__ import annotations

from history import T0, make_run, step, write

from lorawatch.recorder.last_words import LastWords, last_words
from lorawatch.run.records import ExitRecord, PhaseChange


def test_the_last_attempt_counts_though_an_earlier_one_came_further() -> None:
    run = make_run()
    for rank in (0, 1):
        write(run.rank_journal(rank), *(step(n, rank) for n in range(1, 21)))
    write(run.rank_journal(0), *(step(n, 0, attempt=1) for n in range(11, 14)))
    assert last_words(run).step == 13
    late = ExitRecord(rank=0, attempt=1, at=T0 + 900, status="stopped", step=15)
    assert last_words(run, [late]) == LastWords(15, T0 + 900)


def test_what_is_said_after_the_last_step_is_the_end() -> None:
    run = make_run()
    assert last_words(run) == LastWords()
    write(run.rank_journal(0), step(1), PhaseChange(at=T0 + 50, attempt=0, rank=0, name="finished"))
    with open(run.rank_journal(0), "ab") as file:
        file.write(b'{"t":"step","attempt":0,"rank":0,"st')
    assert last_words(run) == LastWords(1, T0 + 50)
