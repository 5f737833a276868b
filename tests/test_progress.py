"""A bar in a terminal, lines elsewhere."""

import io
import re
import sys

import pytest

from lstmlab import progress
from lstmlab.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def open_terminal(monkeypatch) -> Terminal:
    """Standard output, as a terminal of 80 columns."""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    for name, value in {"COLUMNS": "80", "TERM": "xterm-256color"}.items():
        monkeypatch.setenv(name, value)
    return terminal


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    """The time that has passed, to be set."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def frames(terminal: Terminal) -> list[str]:
    plain = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", terminal.getvalue())
    return [line for line in re.split(r"[\r\n]+", plain) if line.strip()]


def test_a_bar_fits_into_80_columns_and_stays_the_last(monkeypatch, clock):
    terminal = open_terminal(monkeypatch)
    monkeypatch.setattr(progress, "BAR_INTERVAL", 0.0)
    shown = Progress("training", stderr=False)
    clock[0] = 100.0
    shown.show(1000, 572_000, {"loss": 1.4, "val": 0.0123456})
    print("said meanwhile")
    shown.show(2000, 572_000, {"loss": 1.4, "val": 0.0123456}, "val 30%")
    shown.close()
    print("said afterwards")
    lines = frames(terminal)
    assert all(len(line) <= 80 for line in lines)
    assert "\x1b[" in terminal.getvalue()
    first, last = re.sub("[╸╺]", "━", lines[0]), lines[-2]
    assert re.fullmatch(r"training ━+ +1,000/572,000 15:51:40 left loss 1.400 val 0.01235", first)
    assert last.startswith("val 30%  ") and "  2,000/572,000 7:55:00 left" in last
    assert lines[-1] == "said afterwards" and lines.count("said meanwhile") == 1


def test_the_time_left_counts_from_where_it_began(clock, capsys):
    """A line every half minute: 60 s for 30 of the 50 that are missing."""
    shown = Progress("training", done=0.5, stderr=False)
    for second in range(61):
        clock[0] = float(second)
        shown.show(50 + second // 2, 100)
    clock[0] = 90.0
    shown.show(100, 100, at_most=0)
    shown.close()
    shown.show(100, 100)
    assert capsys.readouterr().out.splitlines() == [
        "training: 65/100 (65%), 0:01:10 left",
        "training: 80/100 (80%), 0:00:40 left",
        "training: 100/100 (100%), in 0:01:30",
    ]


def test_an_earlier_end_shortens_the_time_left(clock, capsys):
    shown = Progress("training", stderr=False)
    clock[0] = 30.0
    shown.show(1, 1000, share=0.5, at_most=20.0)
    assert capsys.readouterr().out == "training: 1/1,000 (50%), 0:00:20 left\n"


def test_short_work_shows_nothing(monkeypatch):
    terminal = open_terminal(monkeypatch)
    shown = Progress("texts", stderr=False)
    shown.show(1, 2)
    shown.close()
    assert terminal.getvalue() == ""
