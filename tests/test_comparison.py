import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from matplotlib.colors import same_color
from matplotlib.container import BarContainer

from conftest import SMALL, TINY
from lstmlab.comparison import draw_comparison, format_mean
from lstmlab.config import PROJECT


def write_run(folder: Path, metrics: dict | None, **settings) -> None:
    """Write the folder of a run, which is unfinished without metrics."""
    folder.mkdir(parents=True)
    config = {"seed": 0, "run_dir": str(folder), "logger": {"wandb": {"id": folder.name}}} | settings
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    if metrics is not None:
        (folder / "metrics.json").write_text(json.dumps(metrics | {"train/seconds": 60.0}))


def write_sweep(folder: Path, *typed: str, **sweeper) -> None:
    """Write what Hydra records of a sweep."""
    hydra = {
        "sweeper": {"_target_": "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"} | sweeper,
        "sweep": {"subdir": "${hydra:job.num}"},
        "overrides": {"task": list(typed)},
    }
    folder.mkdir()
    (folder / "multirun.yaml").write_text(yaml.safe_dump({"hydra": hydra}))


def test_a_sweep_is_averaged_over_seeds(command, tmp_path):
    sweep = ["-m", "cell.kind=rnn,lstm", "seed=0,1,2", "hydra.sweep.dir=sweep", "trainer.max_steps=1"]
    assert command("train", *sweep, "model=copytask", *TINY["copytask"], *SMALL)[0] == 0
    code, printed, _ = command("compare", "runs=sweep")
    assert code == 0
    written = (tmp_path / "sweep/compare.md").read_text()
    assert printed.startswith(written)
    assert len(written.splitlines()) == 4  # the table alone, without remarks
    assert (tmp_path / "sweep/compare.png").read_bytes().startswith(b"\x89PNG")
    with (tmp_path / "sweep/compare.csv").open(newline="") as file:
        rnn, lstm = csv.DictReader(file)
    assert (rnn["cell.kind"], lstm["cell.kind"], rnn["n"], lstm["n"]) == ("rnn", "lstm", "3", "3")
    measured = [json.loads((tmp_path / f"sweep/{job}/metrics.json").read_text()) for job in range(6)]
    names = [name for name in measured[0] if name.startswith("test/")] + ["train/seconds"]
    assert list(rnn) == ["cell.kind", "n", *(column for name in names for column in (name, f"{name} std"))]
    for row, runs in ((rnn, measured[:3]), (lstm, measured[3:])):
        for name in names:
            values = [run[name] for run in runs]
            assert float(row[name]) == pytest.approx(np.mean(values))
            assert float(row[f"{name} std"]) == pytest.approx(np.std(values, ddof=1), abs=1e-12)


def test_a_choice_that_sets_several_keys_is_one_column(command, tmp_path):
    write_sweep(tmp_path / "sweep", "optimizer=sgd,adam", "seed=0,1")
    for job, (name, seed) in enumerate([("SGD", 0), ("SGD", 1), ("Adam", 0), ("Adam", 1)]):
        optimizer = {"_target_": name, "lr": 1.0 if name == "SGD" else 1e-3}
        optimizer |= {"momentum": 0.9} if name == "SGD" else {}
        settings = {"model": {"patience": 3 if name == "SGD" else 4}, "optimizer": optimizer, "seed": seed}
        write_run(tmp_path / f"sweep/{job}", {"val/loss": float(job), "train/loss": 9.0}, **settings)
    code, printed, _ = command("compare", "runs=sweep")
    assert code == 0
    assert (
        "| optimizer._target_ | n | val/loss | train/seconds |\n" in printed
    )  # the validation's, as there was no test
    assert "| SGD | 2 | 0.5 ± 0.71 | 60 ± 0 |\n| Adam | 2 | 2.5 ± 0.71 | 60 ± 0 |\n" in printed
    assert "consequence of the above: model.patience, optimizer.lr, optimizer.momentum." in printed


def test_all_swept_keys_are_shown(command, tmp_path):
    write_sweep(tmp_path / "sweep", params={"lr": "interval(0,1)", "size": "range(8,64)"}, _target_="Random")
    for job, (lr, size) in enumerate([(0.25, 8), (0.125, 16), (0.5, 8)]):
        write_run(tmp_path / f"sweep/{job}", {"val/loss": lr}, lr=lr, size=size, steps=size * 2)
    _, printed, _ = command("compare", "runs=sweep", "metrics=val/loss")
    assert "| lr | size | n | val/loss |\n" in printed
    rows = [line for line in printed.splitlines() if line.startswith("| 0")]
    assert rows == ["| 0.125 | 16 | 1 | 0.125 |", "| 0.25 | 8 | 1 | 0.25 |", "| 0.5 | 8 | 1 | 0.5 |"]
    assert "consequence of the above: steps." in printed


def test_runs_that_differ_in_many_settings(command, tmp_path):
    """Rows are in the order of the jobs, 9 before 10, and metrics in that of the number in their names.

    Paths in a run's own folder and ids of wandb runs do not count as differences.
    """
    for job in range(12):
        folder = tmp_path / f"sweep/{job}"
        metrics = {f"test/acc_delay{n}": job / 10 for n in (200, 30, 1000)} | {"test/acc": 0.5}
        metrics |= {"test/rare": 1.0} if job == 3 else {}
        metrics |= {"test/half": 2.0 + job} if job in (4, 5) else {}
        where = {"path": f"{folder}/here", "list": [f"{folder}/there"], "none": None}
        write_run(folder, metrics, word=f"w{11 - job // 2}", size=1 - job // 6, more=where, seed=job % 2)
    code, printed, _ = command("compare", "runs=sweep")
    assert code == 0
    header, _, *rows = printed.split("\n\n")[0].splitlines()
    names = ["acc", "rare", "half", "acc_delay30", "acc_delay200", "acc_delay1000"]
    assert sorted(header.strip("| ").split(" | ")[3:]) == sorted(
        [f"test/{n}" for n in names] + ["train/seconds"]
    )
    assert [name for name in header.strip("| ").split(" | ") if "delay" in name] == [
        f"test/{n}" for n in names[3:]
    ]
    assert header.startswith("| size | word | n | ")
    found = [row.strip("| ").split(" | ")[:2] for row in rows]
    assert found == [["0", "w8"], ["0", "w7"], ["0", "w6"], ["1", "w11"], ["1", "w10"], ["1", "w9"]]
    cells = dict(zip(header.strip("| ").split(" | "), rows[4].strip("|").split("|"), strict=True))
    assert {name: cells[name].strip() for name in ("test/rare", "test/half", "test/acc_delay30")} == {
        "test/rare": "1 (n=1)",
        "test/half": "",
        "test/acc_delay30": "0.25 ± 0.071",
    }
    last = dict(zip(header.strip("| ").split(" | "), rows[5].strip("|").split("|"), strict=True))
    assert (last["test/half"].strip(), last["test/rare"].strip()) == ("6.5 ± 0.71", "")
    with (tmp_path / "sweep/compare.csv").open(newline="") as file:
        rare = [(row["test/rare"], row["test/rare std"], row["n"]) for row in csv.DictReader(file)]
    assert rare == [*[("", "", "2")] * 4, ("1.0", "", "2"), ("", "", "2")]
    assert "also differs" not in printed and "same seed" not in printed


def test_values_are_formatted_as_on_the_command_line(command, tmp_path):
    """A key that a run does not have is empty, and numbers stay numbers in the CSV."""
    values: list[dict] = [
        {"a": None, "b": True, "c": [1, 2], "d": 1},
        {"a": "x", "b": False, "c": 3, "d": 0.5},
        {"a": "x"},
    ]
    write_sweep(tmp_path / "sweep", params=dict.fromkeys("abcd", "choice(0,1)"), _target_="Random")
    for job, settings in enumerate(values):
        write_run(tmp_path / f"sweep/{job}", {"val/loss": 1.0, "val/nan": float("nan")}, **settings)
    code, printed, _ = command("compare", "runs=sweep", "metrics=val/*")
    assert code == 0 and printed.startswith(
        "| a | b | c | d | n | val/loss |\n"
    )  # a metric without any value is left out
    rows = [
        "| null | true | [1, 2] | 1 | 1 | 1 |",
        "| x | false | 3 | 0.5 | 1 | 1 |",
        "| x |  |  |  | 1 | 1 |",
    ]
    assert printed.split("\n\n")[0].splitlines()[2:] == rows
    with (tmp_path / "sweep/compare.csv").open(newline="") as file:
        assert list(csv.reader(file))[1:3] == [
            ["null", "true", "[1, 2]", "1", "1", "1.0", ""],
            ["x", "false", "3", "0.5", "1", "1.0", ""],
        ]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.yaml", "run_dir: x"),
        ("config.yaml", "a: [}"),
        ("metrics.json", '{"a": null}'),
        ("metrics.json", ""),
    ],
)
def test_foreign_files_are_named(command, tmp_path, name, content):
    write_run(tmp_path / "run", {"val/loss": 1.0})
    (tmp_path / "run" / name).write_text(content)
    code, _, error = command("compare", "runs=run")
    assert code == 1 and len(error.splitlines()) == 1
    assert error.startswith("error: runs=run: its config.yaml or metrics.json was not written by train.py (")


def test_numbers_are_sorted(command, tmp_path):
    for job, size in enumerate([10, 9, 100]):
        write_run(tmp_path / f"sweep/{job}", {"val/loss": 1.0}, size=size)
    _, printed, _ = command("compare", "runs=sweep", "metrics=val/loss")
    assert [line for line in printed.splitlines() if line.startswith("| 1") or line.startswith("| 9")] == [
        "| 9 | 1 | 1 |",
        "| 10 | 1 | 1 |",
        "| 100 | 1 | 1 |",
    ]


def test_jobs_without_a_result_are_named(command, tmp_path):
    write_sweep(tmp_path / "sweep", "kind=rnn,lstm", "cell=glob([scratch,torch])")
    write_run(tmp_path / "sweep/0", {"val/loss": 1.0}, kind="rnn", cell={"backend": "scratch"})
    write_run(tmp_path / "sweep/2", None, kind="lstm", cell={"backend": "scratch"})
    code, printed, _ = command("compare", "runs=sweep", "metrics=val/*")
    assert code == 0
    assert "| n | val/loss |\n| --- | --- |\n| 1 | 1 |" in printed
    assert "- sweep/1: never started, kind=rnn cell=torch" in printed
    assert "- sweep/2: failed or not finished, no metrics.json" in printed
    assert "- sweep/3: never started, kind=lstm cell=torch" in printed
    assert printed.count("- sweep/") == 3
    write_sweep(tmp_path / "single", "kind=gru")
    _, printed, _ = command("compare", "runs=sweep,single", "metrics=val/*")
    assert "- single/0: never started, kind=gru" in printed


def test_a_study_that_changes_one_thing_at_a_time(command, tmp_path):
    """One column names the change; in a study whose lines change all keys, the keys stay columns."""
    one = ["seed=0,1", "a=1 seed=0,1", "b=x c=2 seed=0,1", "e=3 seed=0,1"]
    settings: list[dict] = [own for own in ({}, {"a": 1}, {"b": "x", "c": 2}, {"e": 3}) for _ in range(2)]
    write_sweep(tmp_path / "one", "data=d", jobs=one, _target_="StudySweeper")
    for job, own in enumerate(settings):
        every = {"a": 0, "b": "y", "c": 0, "e": 0, "d": own.get("a", 0) + 1} | own
        write_run(tmp_path / f"one/{job}", {"val/loss": float(job - (job == 7))}, **every, seed=job % 2)
    code, printed, _ = command("compare", "runs=one", "metrics=val/loss")
    rows = [
        "| changed | n | val/loss | val/loss, change ± standard error |",
        "| --- | --- | --- | --- |",
        "| nothing | 2 | 0.5 ± 0.71 |  |",
        "| a=1 | 2 | 2.5 ± 0.71 | +2 ± 0 |",
        "| b=x c=2 | 2 | 4.5 ± 0.71 | +4 ± 0 |",
        "| e=3 | 2 | 6 ± 0 | +5.5 ± 0.5 |",
    ]
    assert code == 0
    assert printed.startswith("\n".join(rows) + "\n\n")
    assert "also differs" not in printed and "same seed" not in printed
    write_sweep(tmp_path / "all", jobs=["a=1,2 b=x", "a=1,2 b=y"], _target_="StudySweeper")
    for job in range(4):
        write_run(tmp_path / f"all/{job}", {"val/loss": 1.0}, a=1 + job % 2, b="xy"[job // 2])
    assert command("compare", "runs=all", "metrics=val/loss")[1].startswith("| a | b | n | val/loss |")


def test_several_folders_and_a_repeated_seed(command, tmp_path):
    for name, kind, loss in (("a,b", "rnn", 1.0), ("c", "lstm", 3.0), ("d", "lstm", 4.0)):
        write_run(tmp_path / name / "0", {"test/loss": loss}, kind=kind)
        (tmp_path / name / "0/wandb").mkdir()
        (tmp_path / name / "0/wandb/config.yaml").write_text("not: a run")
    _, printed, _ = command("compare", "runs=c,d", "folder=new/place", "metrics=test/*")
    assert "| n | test/loss |\n| --- | --- |\n| 2 | 3.5 ± 0.71 |" in printed
    assert "The same seed more than once: seed=0." in printed
    assert {path.name for path in (tmp_path / "new/place").iterdir()} == {
        "compare.md",
        "compare.csv",
        "compare.png",
    }
    _, printed, _ = command("compare", "runs=a,b")  # one folder, whose name has a comma
    assert "| 1 | 1 | 60 |" in printed
    _, printed, _ = command("compare", "runs=.")
    assert "| rnn | 1 | 1 | 60 |\n| lstm | 2 | 3.5 ± 0.71 | 60 ± 0 |" in printed


def make_runs(keys: list[str], *rows: tuple, **metrics: float) -> pd.DataFrame:
    """Two runs per row: the second has metrics larger by 2, and each row larger by 1 than the one before."""
    runs = [
        dict(zip(keys, values, strict=True))
        | {"row": k, "data.delay": 50}
        | {name: value + k + more for name, value in metrics.items()}
        for k, values in enumerate(rows)
        for more in (0, 2)
    ]
    return pd.DataFrame(runs)


def read_lines(figure) -> dict[str, tuple]:
    """The lines through the means, by their label."""
    [axes] = figure.axes
    return {line.get_label(): tuple(map(list, line.get_data())) for line in axes.lines}


def read_dots(axes) -> list[list[tuple]]:
    """The dots, one per run, of each line or of all bars."""
    return [sorted(map(tuple, dots.get_offsets().tolist())) for dots in axes.collections]


def test_a_number_is_the_x_axis_and_other_keys_are_lines():
    runs = make_runs(
        ["kind", "delay"], ("lstm", 10), ("lstm", 20), ("rnn", 10), ("rnn", 20), ("gru", 10), loss=0.0
    )
    runs.loc[8:, "loss"] = np.nan  # gru has no such metric
    figure = draw_comparison(runs, ["kind", "delay"], ["loss"], None)
    assert read_lines(figure) == {"kind=lstm": ([10, 20], [1, 2]), "kind=rnn": ([10, 20], [3, 4])}
    [axes] = figure.axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("delay", "loss")
    lstm, rnn = read_dots(axes)
    assert lstm == [(10, 0), (10, 2), (20, 1), (20, 3)] and rnn == [(10, 2), (10, 4), (20, 3), (20, 5)]
    for line, dots in zip(axes.lines, axes.collections, strict=True):
        assert same_color(line.get_color(), tuple(np.asarray(dots.get_facecolor())[0, :3]))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["kind=lstm", "kind=rnn"]


def test_nothing_is_drawn_outside_the_range_of_the_runs():
    """Error bars of the accuracies 1 and 0.4 would reach beyond 1."""
    runs = make_runs(["delay"], (10,), (20,), accuracy=0.0).assign(accuracy=[1.0, 0.4, 1.0, 1.0])
    figure = draw_comparison(runs, ["delay"], ["accuracy"], None)
    [axes] = figure.axes
    drawn = [y for dots in read_dots(axes) for _, y in dots] + next(iter(read_lines(figure).values()))[1]
    assert max(drawn) == 1 and min(drawn) == 0.4 and not axes.containers


@pytest.mark.parametrize(
    ("numbers", "scale"), [((1, 19), "linear"), ((1, 20), "log"), ((0, 20), "linear"), ((5, 100), "log")]
)
def test_a_wide_range_has_a_logarithmic_axis(numbers, scale):
    runs = make_runs(["delay"], *((number,) for number in numbers), loss=0.0)
    figure = draw_comparison(runs, ["delay"], ["loss"], None)
    [axes] = figure.axes
    assert axes.get_xscale() == scale
    assert axes.get_xticks().tolist() == list(numbers)
    assert not figure.legends  # one line


def test_a_number_in_the_names_of_metrics_is_the_x_axis():
    """The metric without a number is at the delay of the run itself."""
    keys, names = ["kind"], ["acc", "acc_delay9", "acc_delay100"]
    runs = make_runs(keys, ("lstm",), ("rnn",), acc=0.0, acc_delay100=1.0, acc_delay9=2.0)
    figure = draw_comparison(runs, keys, names, None)
    assert read_lines(figure) == {
        "kind=lstm": ([9, 50, 100], [3, 1, 2]),
        "kind=rnn": ([9, 50, 100], [4, 2, 3]),
    }
    assert (figure.axes[0].get_xlabel(), figure.axes[0].get_ylabel()) == ("delay", "acc")
    figure = draw_comparison(runs, keys, names[1:], None)
    assert read_lines(figure)["kind=lstm"] == ([9, 100], [3, 2])
    [axes] = draw_comparison(runs, keys, names[1:2], None).axes  # a single number is not enough
    assert axes.get_xlabel() == "acc_delay9"


def test_the_number_with_the_most_values_is_the_x_axis():
    keys = ["layers", "size"]
    runs = make_runs(keys, *((layers, size) for layers in (1, 2) for size in (8, 16, 32)), loss=0.0)
    assert set(read_lines(draw_comparison(runs, keys, ["loss"], None))) == {"layers=1", "layers=2"}
    lines = read_lines(draw_comparison(runs, keys, ["loss"], "layers"))
    assert set(lines) == {"size=8", "size=16", "size=32"} and lines["size=8"] == ([1, 2], [1, 4])
    [axes] = draw_comparison(runs, keys, ["loss"], "bars").axes
    assert len(axes.get_yticklabels()) == 6
    square = runs[runs["size"] < 32]  # a tie: the first column
    assert draw_comparison(square, keys, ["loss"], None).axes[0].get_xlabel() == "layers"


def test_words_can_be_the_x_axis():
    keys = ["kind", "delay"]
    runs = make_runs(keys, ("rnn", 10), ("rnn", 20), ("lstm", 10), ("lstm", 20), loss=0.0)
    figure = draw_comparison(runs, keys, ["loss"], "kind")
    figure.draw_without_rendering()
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["rnn", "lstm"]
    assert read_lines(figure) == {
        "delay=10": (["rnn", "lstm"], [1, 3]),
        "delay=20": (["rnn", "lstm"], [2, 4]),
    }


def test_bars_if_a_combination_has_one_value_only():
    """The bars are in the order of the rows, with the settings and the numbers beside them."""
    keys = ["model.pooling", "cell.layers", "feeding"]
    settings = [("max", 1, "false"), ("max", 2, "false"), ("max", 3, "false"), ("last", 1, "false")]
    runs = make_runs(keys, *settings, ("mean", 1, "true"), loss=0.0)
    [axes] = draw_comparison(runs, keys, ["loss"], None).axes
    [bars] = (each for each in axes.containers if isinstance(each, BarContainer))
    assert [bar.get_width() for bar in bars] == [1, 2, 3, 4, 5]
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names[0] == "pooling=max layers=1 feeding=false" and len(names) == 5
    [right] = axes.child_axes
    assert right.get_yticklabels()[0].get_text() == "1 ± 1.4"
    assert axes.get_xlabel() == "loss" and axes.yaxis_inverted()
    assert read_dots(axes) == [sorted((k + more, k) for k in range(5) for more in (0, 2))]
    lines = read_lines(draw_comparison(runs, keys, ["loss"], "cell.layers"))  # unless x= names it
    assert lines["pooling=max feeding=false"] == ([1, 2, 3], [1, 2, 3])
    assert lines["pooling=mean feeding=true"] == ([1], [5])


def test_keys_with_the_same_ending_are_written_in_full():
    keys = ["cell.dropout", "model.dropout", "optimizer._target_"]
    runs = make_runs(keys, (0.1, 0.2, "sgd"), (0.3, 0.4, "adam"), loss=0.0)
    [axes] = draw_comparison(runs, keys, ["loss"], None).axes
    assert axes.get_yticklabels()[0].get_text() == "cell.dropout=0.1 model.dropout=0.2 _target_=sgd"


def test_a_study_marks_the_unchanged_run():
    runs = make_runs(["changed"], ("nothing",), ("a=1",), ("b=2",), loss=3.0)
    runs.loc[4:, "loss"] = np.nan  # no bar
    runs = runs.drop(3)  # one run: no deviation
    [axes] = draw_comparison(runs, ["changed"], ["loss"], None).axes
    assert axes.lines[-1].get_xdata() == [4, 4]  # the unchanged run
    assert [label.get_text() for label in axes.get_yticklabels()] == ["nothing", "a=1", "b=2"]
    assert [label.get_text() for label in axes.child_axes[0].get_yticklabels()] == ["4 ± 1.4", "4", ""]


def test_a_single_row_is_a_bar():
    [axes] = draw_comparison(make_runs([], (), loss=0.0), [], ["loss"], None).axes
    assert [bar.get_width() for bar in axes.containers[-1]] == [1]


def test_a_mean_over_some_of_the_runs_shows_their_number():
    assert format_mean(pd.Series([np.nan, np.nan])) == ""
    assert format_mean(pd.Series([0.5, np.nan])) == "0.5 (n=1)"
    assert format_mean(pd.Series([1.0, 2.0, np.nan])) == "1.5 ± 0.71 (n=2)"
    assert format_mean(pd.Series([0.1, 0.1, 0.1])) == "0.1 ± 0"  # not 1.7e-17


def test_x_can_be_any_setting_that_varies(command, tmp_path):
    """It becomes a column, even if it follows from another, and the keys of a study stay columns too."""
    write_sweep(tmp_path / "sweep", "optimizer=sgd,adam", "seed=0,1")
    for job, name in enumerate(["SGD", "SGD", "Adam", "Adam"]):
        optimizer = {"_target_": name, "lr": 1.0 if name == "SGD" else 1e-3}
        write_run(tmp_path / f"sweep/{job}", {"val/loss": float(job)}, optimizer=optimizer, seed=job % 2)
    code, printed, _ = command("compare", "runs=sweep", "metrics=val/loss", "x=optimizer.lr")
    assert code == 0 and printed.startswith("| optimizer.lr | n | val/loss |\n")
    code, _, error = command("compare", "runs=sweep", "x=lr")
    assert code == 1 and error == (
        "error: x=lr does not vary between these runs; choose one of optimizer._target_, optimizer.lr, bars\n"
    )
    write_sweep(tmp_path / "study", jobs=["seed=0", "a=1", "b=2", "c=3"], _target_="StudySweeper")
    for job, own in enumerate([{}, {"a": 1}, {"b": 2}, {"c": 3}]):
        write_run(tmp_path / f"study/{job}", {"val/loss": 1.0}, **{"a": 0, "b": 0, "c": 0} | own)
    table = "metrics=val/loss"
    assert command("compare", "runs=study", table, "x=a")[1].startswith("| a | b | c | n | val/loss |\n")
    assert command("compare", "runs=study", table, "x=bars")[1].startswith(
        "| changed | n | val/loss | val/loss, "
    )
    code, _, error = command("compare", "runs=study/0", "x=a")
    assert code == 1 and error.endswith("x=a does not vary between these runs; choose one of bars\n")


def test_torch_is_not_imported(tmp_path):
    write_run(tmp_path / "run", {"val/loss": 1.0})
    program = (
        f"import sys, compare; sys.argv[1:] = ['runs={tmp_path}']\n"
        "compare.main()\n"
        "assert 'torch' not in sys.modules and 'matplotlib.pyplot' not in sys.modules\n"
    )
    environment = {"PYTHONPATH": str(PROJECT / "src"), "PATH": ""}
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment, check=True, timeout=60)
