"""Compare runs: a table and a plot by the settings that differ, mean ± standard deviation over seeds."""

import fnmatch
import itertools
import json
import os
import re
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from matplotlib.figure import Figure
from pandas.api.types import is_numeric_dtype

from hydra_plugins.lstmlab_study import list_jobs
from lstmlab.schema import CompareConfig
from lstmlab.tables import markdown

# Runs that differ only in these settings share a row of the table
IGNORED = re.compile(r"seed|run_dir|logger\..*")


@dataclass
class FoundRuns:
    """The runs in the folders."""

    # Folder, settings ("cell.hidden_size": 8) and metrics of each finished run
    finished_runs: list[tuple[Path, dict[str, Any], dict[str, float]]] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)  # each run without a result, and why
    swept_keys: list[str] = field(default_factory=list)  # keys and groups that a multirun.yaml sweeps
    changes: dict[Path, list[str]] = field(default_factory=dict)  # what each job of a study sets, seeds aside


def compare(config: CompareConfig) -> str:
    """Write compare.csv, compare.md and compare.png. Returns the Markdown and the names of the files.

    Raises FileNotFoundError if a folder does not exist or holds no run, and ValueError if no run has
    finished, a file of a run is damaged, `metrics` matches nothing or `x` does not vary.
    """
    whole = Path(config.runs)
    folders = [whole] if whole.exists() else [Path(part) for part in config.runs.split(",")]
    found = FoundRuns()
    for folder in folders:
        search_folder(folder, found)
    if not found.finished_runs:
        raise ValueError(f"runs={config.runs}: none of {len(found.left_out)} runs has finished")

    paths, settings, measured = zip(*found.finished_runs, strict=True)
    runs = pd.DataFrame(settings, dtype=object)
    runs = runs.mask(runs.isna(), "").infer_objects()  # "": the key exists in other runs only
    x = config.x
    keys, implied = find_compared_keys(runs, found.swept_keys, x)

    # In a study that changes one thing at a time, one column says what each row changed
    changes = [found.changes[path] for path in paths if path in found.changes]
    if x not in keys and len(changes) == len(runs) and len(keys) > 1 + max(map(len, changes)):
        runs["changed"] = [" ".join(change) or "nothing" for change in changes]
        keys, implied = ["changed"], []

    values = pd.DataFrame(measured, dtype=float).dropna(axis=1, how="all")
    metrics = choose_metrics(list(values), config.metrics)
    runs = runs.join(values).sort_values(
        keys,
        # Numbers in ascending order, other values in the order of the runs
        key=lambda column: column if is_numeric_dtype(column) else pd.factorize(column)[0],
        kind="stable",
        ignore_index=True,
    )
    runs["row"] = runs.groupby(keys or (lambda run: 0), sort=False).ngroup()

    target = Path(config.folder or folders[0])
    target.mkdir(parents=True, exist_ok=True)
    table = write_table(runs, keys, metrics, target / "compare.csv")
    text = "\n\n".join([table, *list_remarks(runs, keys, implied, found.left_out)])
    (target / "compare.md").write_text(text + "\n", encoding="utf-8")
    draw_comparison(runs, keys, metrics, x).savefig(target / "compare.png", dpi=150)
    return f"{text}\n\n{target}: compare.md, compare.csv, compare.png"


def search_folder(folder: Path, found: FoundRuns) -> None:
    """Add the run in `folder`, or all runs below it."""
    if not folder.is_dir():
        raise FileNotFoundError(f"runs={folder}: no such folder")
    before = len(found.finished_runs) + len(found.left_out)
    for parent, below, files in os.walk(folder):
        below.sort(key=lambda name: (name.isdigit() and int(name), name))  # 9 before 10
        if "multirun.yaml" in files:
            read_sweep(Path(parent), found)
        if "config.yaml" in files:
            below.clear()  # wandb writes another config.yaml below a run
            read_run(Path(parent), found)
    if len(found.finished_runs) + len(found.left_out) == before:
        raise FileNotFoundError(f"runs={folder}: no run in this folder; a run has a config.yaml")


def read_run(folder: Path, found: FoundRuns) -> None:
    try:
        config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        run_dir, settings = config["run_dir"], {"seed": config["seed"]}
        for key, value in pd.json_normalize(config).astype(object).iloc[0].items():
            if isinstance(value, bool) or not isinstance(value, int | float | str):
                value = json.dumps(value, default=str, ensure_ascii=False)  # as typed: true, null, [1, 2]
            # Paths inside the run's folder always differ
            settings[key] = value.replace(run_dir, "") if isinstance(value, str) else value
        if (folder / "metrics.json").exists():
            metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
            found.finished_runs.append((folder, settings, {name: float(metrics[name]) for name in metrics}))
        else:
            found.left_out.append(f"{folder}: failed or not finished, no metrics.json")
    except (ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
        message = f"runs={folder}: its config.yaml or metrics.json was not written by train.py ({error!r})"
        raise ValueError(message) from error


def read_sweep(folder: Path, found: FoundRuns) -> None:
    """Add what multirun.yaml records: the swept keys and, unless a search chose the jobs, missing jobs."""
    hydra = yaml.safe_load((folder / "multirun.yaml").read_text(encoding="utf-8"))["hydra"]
    sweeper, numbered = hydra["sweeper"], hydra["sweep"]["subdir"] == "${hydra:job.num}"
    typed = [f"{key}={value}" for key, value in (sweeper.get("params") or {}).items()]
    typed += hydra["overrides"]["task"]
    # glob() needs the loader, which knows the groups
    parser = OverridesParser.create(GlobalHydra.instance().config_loader())
    overrides = parser.parse_overrides(typed)
    found.swept_keys += [each.get_key_element() for each in overrides if each.is_sweep_override()]
    if not numbered or not sweeper["_target_"].endswith((".BasicSweeper", "StudySweeper")):
        return

    jobs = list_jobs(sweeper.get("jobs", [""]), typed, parser)
    for number, job in enumerate(jobs):
        path, own = folder / str(number), [part for part in job if not all(part in other for other in jobs)]
        found.swept_keys += [part.partition("=")[0] for part in own]
        if "jobs" in sweeper:
            found.changes[path] = [part for part in own if not part.startswith("seed=")]
        if not (path / "config.yaml").exists():
            found.left_out.append(f"{path}: never started, {' '.join(own or job)}")


def find_compared_keys(runs: pd.DataFrame, swept: list[str], x: str | None) -> tuple[list[str], list[str]]:
    """The keys that distinguish the runs, seeds aside, and those whose values follow from these.

    Swept keys and `x` come first. Another key is added only if it distinguishes more runs.
    """
    differ = [key for key in runs if runs[key].nunique() > 1 and not IGNORED.fullmatch(key)]
    if x not in (None, "bars", *differ):
        choices = ", ".join([*differ, "bars"])
        raise ValueError(f"x={x} does not vary between these runs; choose one of {choices}")
    typed = [key for key in differ if key in swept or key == x]
    of_group = [key for key in differ if key.startswith(tuple(f"{group}." for group in swept))]
    keys: list[str] = []
    rows = 1
    for key in dict.fromkeys([*typed, *of_group, *differ]):
        split = len(runs[[*keys, key]].drop_duplicates())
        if key in typed or split > rows:
            keys, rows = [*keys, key], split
    return keys, [key for key in differ if key not in keys]


def choose_metrics(metrics: list[str], patterns: str | Sequence[str] | None) -> list[str]:
    """The metrics that match `patterns`, sorted by the number at their end: …_delay9, …_delay10."""
    ordered = sorted(metrics, key=lambda name: int((re.findall(r"\d+$", name) or [-1])[0]))
    tested = any(name.startswith("test/") for name in ordered)
    patterns = patterns or ["test/*" if tested else "val/*", "train/seconds"]
    chosen: dict[str, None] = {}
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        matches = fnmatch.filter(ordered, pattern)
        if not matches:
            raise ValueError(f"metrics={pattern} matches nothing; there are {', '.join(ordered)}")
        chosen |= dict.fromkeys(matches)
    return list(chosen)


def write_table(runs: pd.DataFrame, keys: list[str], metrics: list[str], path: Path) -> str:
    """Write the table as CSV. Returns it in Markdown."""
    rows = runs.groupby("row")
    settings, n = runs.drop_duplicates("row").set_index("row")[keys], rows.size().rename("n")
    numbers = rows[metrics].agg(["mean", "std"])
    numbers.columns = [name if of == "mean" else f"{name} std" for name, of in numbers.columns]
    pd.concat([settings, n, numbers], axis=1).to_csv(path, index=False)
    text = pd.concat([settings.map(format_value), n, rows[metrics].agg(format_mean)], axis=1)
    unchanged = runs[runs["changed"] == "nothing"] if keys == ["changed"] else runs[:0]
    if len(unchanged):
        # What a run shares with the unchanged run of the same seed cancels
        of_seed = unchanged.drop_duplicates("seed").set_index("seed")[metrics[0]]
        change = (runs[metrics[0]] - runs["seed"].map(of_seed)).drop(unchanged.index)
        text[f"{metrics[0]}, change ± standard error"] = change.groupby(runs["row"]).agg(format_change)
        text = text.fillna("")
    return markdown(list(text), text.to_numpy(object).tolist())


def list_remarks(runs: pd.DataFrame, keys: list[str], implied: list[str], left_out: list[str]) -> list[str]:
    remarks = []
    if implied:
        remarks.append(f"What also differs, as a consequence of the above: {', '.join(implied)}.")
    for _, twice in runs[runs.duplicated(["row", "seed"])].groupby("row"):
        which = twice[keys].assign(seed=",".join(map(str, twice["seed"].unique())))
        remarks.append(f"The same seed more than once: {describe_runs(which)[0]}.")
    if left_out:
        remarks.append("Left out:\n\n" + "\n".join(f"- {reason}" for reason in left_out))
    return remarks


def format_value(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def format_mean(values: pd.Series) -> str:
    """A string such as 0.5 ± 0.1 (n=2): n is given if some of the runs have no value."""
    known = values.dropna().to_list()
    mean = f"{statistics.fmean(known):.4g}" if known else ""
    std = f" ± {statistics.stdev(known):.2g}" if len(known) > 1 else ""
    return mean + std + (f" (n={len(known)})" if 0 < len(known) < len(values) else "")


def format_change(values: pd.Series) -> str:
    """A string such as +0.5 ± 0.1, with the standard error of the mean."""
    known = values.dropna()
    error = f" ± {known.sem():.2g}" if len(known) > 1 else ""
    return f"{known.mean():+.3g}{error}" if len(known) else ""


def describe_runs(settings: pd.DataFrame) -> list[str]:
    """The settings of each run as on the command line: kind=lstm delay=10."""
    typed = [f"{key}=" + settings[key].map(format_value) for key in settings]
    return [" ".join(row) for row in zip(*typed, strict=True)] if typed else [""] * len(settings)


def draw_comparison(runs: pd.DataFrame, keys: list[str], metrics: list[str], x: str | None) -> Figure:
    """Plot the first metric over x, or as one bar per row; conf/compare.yaml says how x is chosen."""
    metric = metrics[0]
    ends = Counter(key.rpartition(".")[2] for key in keys)
    short = {key: end if ends[end := key.rpartition(".")[2]] == 1 else key for key in keys}

    # test/loss_delay100, test/loss_delay200: one metric at several delays
    stem = re.sub(r"_[a-z]+\d+$", "", metric)
    matches = [re.fullmatch(rf"{re.escape(stem)}_([a-z]+)(\d+)", name) for name in metrics]
    numbered = [match for match in matches if match]
    places: list[tuple[str, Any]] = []  # metrics to plot, each with the x of its values
    if x is None and len(numbered) > 1:
        metric, label = stem, numbered[0][1]
        places = [(match[0], float(match[2])) for match in numbered]
        # The metric without a number was measured at the delay of the run itself, data.delay
        own = [key for key in runs if key.endswith(f".{label}") and stem in metrics]
        places += [(stem, pd.to_numeric(runs[key], errors="coerce")) for key in own]
    elif (x := x or choose_x(runs.loc[runs[metric].notna(), keys])) not in (None, "bars"):
        label, places = short[x], [(metric, runs[x])]

    if not places:
        return draw_bars(runs, runs[keys].rename(columns=short), metric)
    lines = describe_runs(runs[[key for key in keys if key != x]].rename(columns=short))
    points = [pd.DataFrame({"line": lines, "x": at, "value": runs[name]}) for name, at in places]
    return draw_lines(pd.concat(points).dropna().sort_index(kind="stable"), label, metric)


def choose_x(settings: pd.DataFrame) -> str | None:
    """The numeric key with the most values for which every combination of the other keys has two or more."""
    numbers = settings.select_dtypes("number").nunique().sort_values(ascending=False, kind="stable")
    for key in numbers.index:
        other_keys = settings.columns.drop(key).to_list()
        if settings.groupby(other_keys or (lambda run: 0))[key].nunique().min() > 1:
            return key
    return None


def draw_lines(points: pd.DataFrame, xlabel: str, ylabel: str) -> Figure:
    """Plot lines through the means at each x, and a dot for each run; `points` has line, x and value."""
    figure = Figure((8, 4 + 0.2 * points["line"].nunique()), layout="constrained")
    ax = figure.subplots()
    numeric = is_numeric_dtype(points["x"])
    if not numeric:
        points = points.assign(x=points["x"].map(format_value))
    lines = points.groupby("line", sort=False)
    for (name, line), marker in zip(lines, itertools.cycle("os^DvXP"), strict=False):
        means = line.groupby("x", sort=numeric)["value"].mean()
        [drawn] = ax.plot(means.index, means, marker=marker, markersize=6, label=name)
        ax.scatter(line["x"], line["value"], s=9, color=drawn.get_color(), alpha=0.6, zorder=3)
    if numeric:
        places = sorted(points["x"].unique())
        if places[0] > 0 and places[-1] >= 20 * places[0]:
            ax.set_xscale("log")
        if len(places) <= 10:
            ax.set_xticks(places, map(format_value, places))
            ax.minorticks_off()
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.grid(axis="y", alpha=0.3)
    if any(points["line"]):
        figure.legend(fontsize=8, loc="outside upper center")
    return figure


def draw_bars(runs: pd.DataFrame, settings: pd.DataFrame, metric: str) -> Figure:
    """Plot one bar per row and one dot per run. In a study the bars begin at the unchanged run."""
    rows = runs.groupby("row")[metric]
    means, settings = rows.mean(), settings[~runs["row"].duplicated()]
    texts = [text.removeprefix("changed=") for text in describe_runs(settings)]
    figure = Figure((8, 0.3 * len(texts) + 0.8), layout="constrained")
    ax = figure.subplots()
    start = means[texts.index("nothing")] if "nothing" in texts else 0.0
    ax.barh(means.index, means - start, left=start, color="tab:blue", alpha=0.6)
    ax.scatter(runs[metric], runs["row"], s=9, color="black", zorder=3)
    ax.axvline(start, color="black", linewidth=0.8)
    right = ax.secondary_yaxis("right")
    for axis, labels in ((ax, texts), (right, rows.agg(format_mean))):
        axis.set_yticks(range(len(texts)), labels, fontsize=8)
        axis.tick_params("y", length=0)
    ax.set_ylim(len(texts) - 0.5, -0.5)
    ax.set(xlabel=metric)
    ax.grid(axis="x", alpha=0.3)
    ax.set_axisbelow(True)
    return figure
