"""Progress with the time left: a bar in a terminal; in a file or a pipe, a line every half minute."""

import math
import time
from collections.abc import Mapping
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar

BAR_INTERVAL, LINE_INTERVAL = 0.5, 30.0  # seconds


class Progress:
    """What share of a piece of work is done, and how long the rest will take.

    Nothing is shown before the first interval is over, so short work shows nothing. No thread draws: between
    two calls of `show` the work runs undisturbed.

    Args:
        name: of the work; the first word of the line.
        done: the share that was done before it began, between 0 and 1.
        stderr: show it there, where standard output holds the result of a command.
        bar: False: lines in a terminal too, for several processes that share it.

    >>> with closing(Progress("reading")) as progress:
    ...     progress.show(100, 400)
    """

    def __init__(self, name: str, done: float = 0.0, stderr: bool = True, bar: bool = True):
        self.name, self.first = name, done
        self.console = Console(stderr=stderr)
        self.bar: Bar | None = None
        if bar and self.console.file.isatty() and not self.console.is_dumb_terminal:
            self.bar = Bar(
                TextColumn("{task.description}", style="bold"),
                BarColumn(bar_width=None),
                TextColumn("{task.fields[counted]}"),
                TextColumn("{task.fields[left]}", style="cyan"),
                TextColumn("{task.fields[facts]}", style="green"),
                console=self.console,
                auto_refresh=False,
                expand=True,
                transient=stderr,
                redirect_stdout=not stderr,
            )
            self.bar.add_task(name, total=1.0, counted="", left="", facts="")
        self.started = time.monotonic()
        self.interval = LINE_INTERVAL if self.bar is None else BAR_INTERVAL
        self.next = self.started + self.interval

    def is_due(self) -> bool:
        """Whether `show` would show anything, for values that take time to find out."""
        return time.monotonic() >= self.next

    def show(
        self,
        count: float,
        total: float,
        facts: Mapping[str, float] | None = None,
        name: str | None = None,
        share: float | None = None,
        at_most: float = math.inf,
    ) -> None:
        """Show that `count` of `total` are done, and some values by name, if it is due.

        name: instead of that of the whole work; share: of the time that has passed, if it is not count /
        total; at_most: the seconds after which the work ends in any case, 0 if it has ended.
        """
        now = time.monotonic()
        if now < self.next and at_most > 0:
            return
        self.next = now + self.interval
        done = count / total if share is None else share
        elapsed, gained = now - self.started, done - self.first
        seconds = min(elapsed * (1 - done) / gained if gained > 0 else math.inf, at_most)
        left = "-:--:-- left" if seconds == math.inf else f"{timedelta(seconds=round(seconds))} left"
        if at_most == 0:
            left = f"in {timedelta(seconds=round(elapsed))}"
        values = [f"{key} {value:#.4g}" for key, value in (facts or {}).items()]
        counted = f"{count:,.0f}/{total:,.0f}"
        if self.bar is None:
            self.print(f"{name or self.name}: {counted} ({done:.0%}), {', '.join([left, *values])}")
            return
        self.bar.update(
            self.bar.task_ids[0],
            description=(name or self.name).ljust(8),
            completed=done,
            counted=counted.rjust(2 * len(f"{total:,.0f}") + 1),
            left=left,
            facts=" ".join(values),
        )
        if self.bar.live.is_started:
            self.bar.refresh()
        else:
            self.bar.start()

    def print(self, text: str) -> None:
        """Print a text above the bar."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)
        self.console.file.flush()

    def close(self) -> None:
        """Leave the bar where it is (on standard error: remove it). Nothing is drawn after this."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None
        self.next = math.inf
