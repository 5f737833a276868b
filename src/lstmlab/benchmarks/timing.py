"""Compare contenders: check that they agree, time them in turn, write bench.json and bench.png."""

import json
import math
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import torch
from matplotlib.figure import Figure
from torch import Tensor

from lstmlab.cells.cpu import find_cpu
from lstmlab.progress import Progress
from lstmlab.tables import markdown

T = TypeVar("T")

WARM_UP = 2  # calls that are not counted
SHORTEST = 0.02  # seconds; a faster contender is called several times per round
Contenders = Mapping[str, Callable[[], Sequence[Tensor]]]  # each returns what it computed


@dataclass
class TimingRow:
    """One size of one piece of work, with the median of each contender."""

    size: str
    medians: dict[str, float]
    gemm_share: dict[str, float] | None = None  # of the peak rate of matrix products in the same rounds


@dataclass
class Section:
    """One piece of work: how many times better `subject` is than each other contender."""

    title: str
    subject: str
    rows: list[TimingRow]
    unit: str = "ms"  # or MB; of a unit that ends in /s, more is better


def check_agreement(contenders: Contenders, atol: float = 1e-4) -> None:
    """Raise RuntimeError unless all contenders compute the same numbers: |a − b| ≤ atol · (1 + max |b|)."""
    (first, run), *others = contenders.items()
    expected = run()
    for name, run in others:
        for k, (a, b) in enumerate(zip(run(), expected, strict=True)):
            error = (a - b).abs().max().item()
            if not error <= atol * (1 + b.abs().max().item()):
                message = f"not timed: result {k} of {name} differs from that of {first} by {error:.2g}"
                raise RuntimeError(message)


def time_in_turn(contenders: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median milliseconds per call of each contender."""
    return {name: statistics.median(values) for name, values in time_rounds(contenders, rounds).items()}


def time_rounds(contenders: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Milliseconds per call of each contender in each round. After a warm-up they take turns."""
    calls = {}
    for name, run in contenders.items():
        for _ in range(WARM_UP):
            start = time.perf_counter()
            run()
            calls[name] = max(1, math.ceil(SHORTEST / (time.perf_counter() - start)))
    times: dict[str, list[float]] = {name: [] for name in contenders}
    with closing(Progress("rounds")) as progress:
        for done in range(rounds):
            for name, run in contenders.items():
                start = time.perf_counter()
                for _ in range(calls[name]):
                    run()
                times[name].append(1e3 * (time.perf_counter() - start) / calls[name])
            progress.show(done + 1, rounds)
    return times


def median_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """The median, and the ends of its 95 % interval: of n ordered values, those between which it lies
    whatever the distribution; of five or fewer, the first and the last."""
    ordered, n = sorted(values), len(values)
    chances = [sum(math.comb(n, j) for j in range(k + 1)) / 2**n for k in range(n)]  # at most k lie below it
    k = max(0, sum(chance <= 0.025 for chance in chances) - 1)
    return statistics.median(ordered), ordered[k], ordered[n - 1 - k]


def run_jobs(jobs: Sequence[tuple[str, float, Callable[[], T]]]) -> list[T]:
    """Run each job (its name, its share of the work, what it does) and say on stderr what is left.

    The shortest come first, so that one hears soon how long all of them will take.
    """
    results: dict[int, T] = {}
    total, done, start = sum(work for _, work, _ in jobs), 0.0, time.perf_counter()
    for number, place in enumerate(sorted(range(len(jobs)), key=lambda place: jobs[place][1]), 1):
        name, work, run = jobs[place]
        results[place] = run()
        done += work
        left = (time.perf_counter() - start) * (total - done) / done
        print(f"[{number}/{len(jobs)}] {name}; about {left / 60:.1f} min left", file=sys.stderr, flush=True)
    return [results[place] for place in range(len(jobs))]


def describe_machine() -> dict[str, str | int]:
    cpu = find_cpu()
    return {
        "cpu": cpu.model,
        "instructions": " ".join(cpu.instruction_sets),
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "system": platform.platform(),
    }


def geometric_mean(values: Sequence[float]) -> float:
    return math.exp(statistics.fmean(map(math.log, values)))


def times_better(section: Section, row: TimingRow, name: str) -> float:
    ratio = row.medians[name] / row.medians[section.subject]
    return 1 / ratio if section.unit.endswith("/s") else ratio


def format_section(section: Section) -> str:
    """A Markdown table: the subject's own value and how many times better it is than each contender."""
    names = list(section.rows[0].medians)
    names.remove(section.subject)
    cells = []
    for row in section.rows:
        shares = {name: f" ({share:.0%})" for name, share in (row.gemm_share or {}).items()}
        columns = [f"{row.medians[section.subject]:,.4g}{shares.get(section.subject, '')}"]
        columns += [f"{times_better(section, row, name):.2f}×{shares.get(name, '')}" for name in names]
        cells.append([row.size, *columns])
    if len(section.rows) > 1:
        means = [geometric_mean([times_better(section, row, name) for row in section.rows]) for name in names]
        cells.append(["geometric mean", "", *(f"{mean:.2f}×" for mean in means)])
    return f"**{section.title}**\n\n" + markdown(["", f"{section.subject}, {section.unit}", *names], cells)


def draw_sections(sections: Sequence[Section]) -> Figure:
    """One bar per size and contender: how many times better the subject is."""
    heights = [2 + sum(len(row.medians) for row in section.rows) for section in sections]
    figure = Figure((9, 0.2 * sum(heights)), layout="constrained")
    panels = figure.subplots(len(sections), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, section in zip(panels, sections, strict=True):
        names = list(section.rows[0].medians)
        names.remove(section.subject)
        for j, name in enumerate(names):
            places = [k * (len(names) + 1) + j for k in range(len(section.rows))]
            values = [times_better(section, row, name) for row in section.rows]
            axes.bar_label(axes.barh(places, values, label=name), fmt=" %.2f", fontsize=7)
        middles = [k * (len(names) + 1) + (len(names) - 1) / 2 for k in range(len(section.rows))]
        axes.set_yticks(middles, [row.size for row in section.rows], fontsize=8)
        axes.invert_yaxis()
        axes.axvline(1, color="black", linewidth=0.8)
        axes.margins(x=0.12)
        axes.set_title(f"{section.title}: {section.subject} is … times better than", fontsize=9, loc="left")
        axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def write_results(suite: str, folder: str, **results: object) -> None:
    """Write bench.json into the folder: the results and the machine that they were measured on."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    content = {"suite": suite, "machine": describe_machine(), **results}
    (Path(folder) / "bench.json").write_text(json.dumps(content, indent=2) + "\n")


def write_report(suite: str, sections: Sequence[Section], folder: str, **results: object) -> str:
    """Write bench.json and bench.png into the folder. Returns the tables in Markdown."""
    write_results(suite, folder, sections=[asdict(section) for section in sections], **results)
    draw_sections(sections).savefig(Path(folder) / "bench.png", dpi=150)
    return "\n\n".join(format_section(section) for section in sections) + f"\n\n{folder}"
