"""What runs differ in and how they came out: table and plot, mean ± standard deviation over seeds."""

import csv
import fnmatch
import itertools
import json
import os
import re
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from matplotlib.figure import Figure

from hydra_plugins.lstmlab_study import jobs_of
from lstmlab.tables import markdown

IGNORED = re.compile(r"seed|run_dir|logger\..*")  # of what runs may differ in
SHARED = 0.75  # of all combinations there have to be so many for lines


@dataclass
class Run:
    """A finished run."""

    folder: Path
    settings: dict[str, Any]  # flat: "cell.hidden_size"
    metrics: dict[str, float]


@dataclass
class Found:
    """What lies in the folders."""

    runs: list[Run] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)  # why, a sentence each
    swept: list[str] = field(default_factory=list)  # keys and groups that a multirun.yaml names
    typed: dict[Path, list[str]] = field(default_factory=dict)  # what jobs of a study have of their own


@dataclass
class Row:
    """Runs that differ in their seeds alone."""

    settings: tuple  # the values of the compared keys
    runs: list[Run]

    def values(self, metric: str) -> list[float]:
        return [run.metrics[metric] for run in self.runs if metric in run.metrics]


def compare(config: dict[str, Any]) -> str:
    """Write compare.csv, compare.md and compare.png; the Markdown, to be printed.

    Raises:
        FileNotFoundError: there is no such folder, or no run in it.
        ValueError: no run has finished, a file of a run is damaged, or `metrics` matches nothing.
    """
    whole = Path(config["runs"])
    folders = [whole] if whole.exists() else [Path(part) for part in config["runs"].split(",")]
    found = Found()
    for folder in folders:
        search(folder, found)
    if not found.runs:
        raise ValueError(f"runs={config['runs']}: none of {len(found.left_out)} runs has finished")
    keys, implied = compared_keys(found)
    typed = found.typed
    if all(run.folder in typed for run in found.runs) and len(keys) > 1 + max(map(len, typed.values())):
        for run in found.runs:  # one thing changed at a time
            changed = " ".join(typed[run.folder]) or "nothing"
            run.settings = {"changed": changed, "seed": run.settings["seed"]}
        keys, implied = ["changed"], []
    rows = grouped(found.runs, keys)
    names = chosen(found.runs, config["metrics"])

    parts = [table(keys, rows, names)]
    if implied:
        parts.append(f"What also differs, as a consequence of the above: {', '.join(implied)}.")
    for row in rows:
        count = Counter(run.settings["seed"] for run in row.runs)
        if twice := [str(seed) for seed, times in count.items() if times > 1]:
            which = [*described(keys, row.settings).split(), f"seed={','.join(twice)}"]
            parts.append(f"The same seed more than once: {' '.join(which)}.")
    if found.left_out:
        parts.append("Left out:\n\n" + "\n".join(f"- {reason}" for reason in found.left_out))
    text = "\n\n".join(parts)

    target = Path(config["folder"] or folders[0])
    target.mkdir(parents=True, exist_ok=True)
    (target / "compare.md").write_text(text + "\n", encoding="utf-8")
    with (target / "compare.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*keys, "n", *(column for name in names for column in (name, f"{name} std"))])
        for row in rows:
            numbers = [number for name in names for number in mean_std(row.values(name))]
            writer.writerow([*row.settings, len(row.runs), *numbers])
    picture(keys, rows, names).savefig(target / "compare.png", dpi=150)
    return f"{text}\n\n{target}: compare.md, compare.csv, compare.png"


def search(folder: Path, found: Found) -> None:
    """Add the runs of a folder: itself, or those anywhere below it."""
    if not folder.is_dir():
        raise FileNotFoundError(f"runs={folder}: no such folder")
    before = len(found.runs) + len(found.left_out)
    for parent, below, files in os.walk(folder):
        below.sort(key=lambda name: (name.isdigit() and int(name), name))  # 9 before 10
        if "multirun.yaml" in files:
            search_sweep(Path(parent), found)
        if "config.yaml" in files:
            below.clear()  # wandb keeps a config.yaml too
            add_run(Path(parent), found)
    if len(found.runs) + len(found.left_out) == before:
        raise FileNotFoundError(f"runs={folder}: no run there, which would have a config.yaml")


def add_run(folder: Path, found: Found) -> None:
    try:
        config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        settings = dict(flat(config, config["run_dir"]))
        if (folder / "metrics.json").exists():
            metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
            found.runs.append(Run(folder, settings, metrics))
        else:
            found.left_out.append(f"{folder}: failed or not finished, no metrics.json")
    except (ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise ValueError(f"runs={folder}: its config.yaml or metrics.json is no run's ({error!r})") from error


def search_sweep(folder: Path, found: Found) -> None:
    """What multirun.yaml tells: what was swept, and if known beforehand, which jobs there should be."""
    hydra = yaml.safe_load((folder / "multirun.yaml").read_text(encoding="utf-8"))["hydra"]
    sweeper, numbered = hydra["sweeper"], hydra["sweep"]["subdir"] == "${hydra:job.num}"
    typed = [f"{key}={value}" for key, value in (sweeper.get("params") or {}).items()]
    typed += hydra["overrides"]["task"]
    parser = OverridesParser.create(GlobalHydra.instance().config_loader())  # for glob(): it knows the groups
    found.swept += [
        each.get_key_element() for each in parser.parse_overrides(typed) if each.is_sweep_override()
    ]
    if not numbered or not sweeper["_target_"].endswith((".BasicSweeper", "StudySweeper")):
        return
    jobs = jobs_of(sweeper.get("jobs", [""]), typed, parser)
    for number, job in enumerate(jobs):
        place, own = folder / str(number), [part for part in job if not all(part in other for other in jobs)]
        found.swept += [part.partition("=")[0] for part in own]
        if "jobs" in sweeper:
            found.typed[place] = [part for part in own if not part.startswith("seed=")]
        if not (place / "config.yaml").exists():
            found.left_out.append(f"{place}: never began, {' '.join(own or job)}")


def flat(node: dict[str, Any], run_dir: str, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """{"cell": {"kind": "lstm"}} → ("cell.kind", "lstm"); a run's own folder is left out of the values."""
    for key, value in node.items():
        if isinstance(value, dict):
            yield from flat(value, run_dir, f"{prefix}{key}.")
        else:
            text = str(value) if isinstance(value, list | str) else None
            yield prefix + key, value if text is None else text.replace(run_dir, "")


def compared_keys(found: Found) -> tuple[list[str], list[str]]:
    """The keys whose values tell the runs apart, but for the seed; and those which follow from these."""
    every = dict.fromkeys(key for run in found.runs for key in run.settings)
    values = {key: [run.settings.get(key, "") for run in found.runs] for key in every}
    differ = [key for key in every if len(set(values[key])) > 1 and not IGNORED.fullmatch(key)]
    typed = [key for key in differ if key in found.swept]
    of_group = [key for key in differ if key.startswith(tuple(f"{group}." for group in found.swept))]
    keys: list[str] = []
    for key in dict.fromkeys([*typed, *of_group, *differ]):
        before = list(zip(*(values[kept] for kept in keys), strict=True)) or [()] * len(found.runs)
        pairs = set(zip(before, values[key], strict=True))
        if key in typed or len(pairs) > len(set(before)):
            keys.append(key)
    return keys, [key for key in differ if key not in keys]


def grouped(runs: Sequence[Run], keys: Sequence[str]) -> list[Row]:
    """A row for each combination of values; numbers ascend, other values come as the runs do."""
    rows: dict[tuple, Row] = {}
    for run in runs:
        settings = tuple(run.settings.get(key, "") for key in keys)
        rows.setdefault(settings, Row(settings, [])).runs.append(run)
    orders = [ordered(values) for values in zip(*rows, strict=True)]
    return sorted(
        rows.values(),
        key=lambda row: [order.index(value) for order, value in zip(orders, row.settings, strict=True)],
    )


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def ordered(values: Iterable) -> list:
    distinct = list(dict.fromkeys(values))
    return sorted(distinct) if all(map(is_number, distinct)) else distinct


def chosen(runs: Sequence[Run], patterns: str | list[str] | None) -> list[str]:
    every = list(dict.fromkeys(name for run in runs for name in run.metrics))
    every.sort(key=lambda name: int((re.findall(r"\d+$", name) or [-1])[0]))  # …_delay9, …_delay10
    if patterns is None:
        measured = "test/" if any(name.startswith("test/") for name in every) else "val/"
        return [name for name in every if name.startswith(measured)] + ["train/seconds"]
    patterns = [patterns] if isinstance(patterns, str) else patterns
    matches = {pattern: fnmatch.filter(every, pattern) for pattern in patterns}
    if nothing := [pattern for pattern, names in matches.items() if not names]:
        raise ValueError(f"metrics={nothing[0]} matches nothing. There are {', '.join(every)}")
    return list(dict.fromkeys(itertools.chain(*matches.values())))


def mean_std(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Mean, and standard deviation (n − 1) if there are two or more."""
    mean = statistics.fmean(values) if values else None
    return mean, statistics.stdev(values) if len(values) > 1 else None


def spread(mean: float | None, std: float | None) -> str:
    return "" if mean is None else f"{mean:.4g}" + ("" if std is None else f" ± {std:.2g}")


def table(keys: Sequence[str], rows: Sequence[Row], names: Sequence[str]) -> str:
    def cell(row: Row, name: str) -> str:
        values = row.values(name)
        text = spread(*mean_std(values))
        return text if len(values) in (0, len(row.runs)) else f"{text} (n={len(values)})"

    cells = [
        [*map(written, row.settings), len(row.runs), *(cell(row, name) for name in names)] for row in rows
    ]
    return markdown([*keys, "n", *names], cells)


def written(value: object) -> str:
    """As one would type it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


def described(keys: Sequence[str], settings: Sequence) -> str:
    return " ".join(f"{key}={written(value)}" for key, value in zip(keys, settings, strict=True))


def picture(keys: Sequence[str], rows: Sequence[Row], names: Sequence[str]) -> Figure:
    """The first metric: lines over a number that the rows share, or else a bar for each row.

    The number is what metrics of one name differ in (test/sequence_accuracy_delay100, …_delay200), if more
    than one was asked for; or the compared key with the most values, all numbers, which nearly every
    combination of the other keys takes.
    """
    metric, series = names[0], dict[str, list[tuple[float, list[float]]]]()
    ends = [key.rpartition(".")[2] for key in keys]
    short = [end if ends.count(end) == 1 else key for key, end in zip(keys, ends, strict=True)]
    numbered = {name: match for name in names if (match := re.fullmatch(r"(.+)_([a-z]+)(\d+)", name))}
    stem = numbered[metric][1] if metric in numbered else metric
    family = {name: match for name, match in numbered.items() if match[1] == stem}
    if len(family) > 1:
        label = next(iter(family.values()))[2]
        for row in rows:
            points = [(float(match[3]), row.values(name)) for name, match in family.items()]
            trained = [value for key, value in row.runs[0].settings.items() if key.endswith(f".{label}")]
            points += [(value, row.values(stem)) for value in trained if is_number(value) and stem in names]
            series[described(short, row.settings)] = points
        return lines(series, label, stem)

    axes: list[tuple[int, int]] = []  # how many values, which key
    for k, values in enumerate(map(set, zip(*(row.settings for row in rows), strict=True))):
        others = {row.settings[:k] + row.settings[k + 1 :] for row in rows}
        if all(map(is_number, values)) and 1 < len(values) <= len(rows) / len(others) / SHARED:
            axes.append((len(values), k))
    if not axes:
        return bars(short, rows, metric)
    _, x = max(axes)
    for row in rows:
        rest = described(short[:x] + short[x + 1 :], row.settings[:x] + row.settings[x + 1 :])
        series.setdefault(rest, []).append((row.settings[x], row.values(metric)))
    return lines(series, short[x], metric)


def lines(series: dict[str, list[tuple[float, list[float]]]], label: str, metric: str) -> Figure:
    """A line for each name, through points of a number and the values there."""
    figure = Figure((8, 4 + 0.2 * len(series)), layout="constrained")
    ax = figure.subplots()
    places = sorted({place for points in series.values() for place, values in points if values})
    for (name, points), marker in zip(series.items(), itertools.cycle("os^DvXP"), strict=False):
        points = sorted(point for point in points if point[1])
        xs, means = [x for x, _ in points], [statistics.fmean(values) for _, values in points]
        errors = [mean_std(values)[1] or 0 for _, values in points]
        ax.errorbar(xs, means, errors, marker=marker, markersize=5, elinewidth=1, capsize=3, label=name)
    if places[0] > 0 and places[-1] >= 20 * places[0]:
        ax.set_xscale("log")
    if len(places) <= 10:
        ax.set_xticks(places, map(written, places))
        ax.minorticks_off()
    ax.set(xlabel=label, ylabel=metric)
    ax.grid(axis="y", alpha=0.3)
    if any(series):
        figure.legend(fontsize=8, loc="outside upper center")
    return figure


def bars(keys: Sequence[str], rows: Sequence[Row], metric: str) -> Figure:
    """A bar for each row, lying, so that there is room for its settings; dashed: nothing changed."""
    figure = Figure((8, 0.3 * len(rows) + 0.8), layout="constrained")
    ax = figure.subplots()
    names = [written(*row.settings) if len(keys) == 1 else described(keys, row.settings) for row in rows]
    found = [mean_std(row.values(metric)) for row in rows]
    means, errors = np.array(found, float).T  # nan for None, which is not drawn
    ax.barh(range(len(rows)), means, xerr=errors, color="tab:blue", capsize=3)
    if "nothing" in names:
        ax.axvline(means[names.index("nothing")], color="black", linewidth=0.8, linestyle="--")
    right = ax.secondary_yaxis("right")
    for axis, texts in ((ax, names), (right, [spread(*each) for each in found])):
        axis.set_yticks(range(len(rows)), texts, fontsize=8)
        axis.tick_params("y", length=0)
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.set(xlabel=metric, ylabel=keys[0] if len(keys) == 1 else "")
    ax.grid(axis="x", alpha=0.3)
    ax.set_axisbelow(True)
    return figure
