"""The commands: `lstmlab train …` or, in the repository, `python src/train.py …`.

Each imports what it needs: torch and Lightning take seconds, and a typo is reported before that.
"""

import difflib
import sys
from collections.abc import Iterable
from typing import Any

import yaml

from lstmlab.config import entry_point, refuse_unread
from lstmlab.help import CONF
from lstmlab.schema import (
    AnalyzeConfig,
    BenchConfig,
    CompareConfig,
    EvaluateConfig,
    ExportConfig,
    PredictConfig,
    TrainConfig,
)

TIMED = {"suite", "rounds", "threads"}
# Settings that each suite of bench reads; train, compile and speedrun read all of them
READ = {
    "cells": TIMED,
    "engines": TIMED | {"cell.kind"},
    "kinds": TIMED,
    "ladder": TIMED,
    "sample": TIMED | {"seed", "cell.hidden_size", "cell.num_layers"},
    "floors": {"suite", "data"}
    | {f"data.{key}" for key in ("path", "cache", "val_fraction", "max_val_chars", "max_chars", "split")}
    | {f"data.{key}" for key in ("train", "val", "test", "hub", "text", "label")}
    | {f"data.{part}_size" for part in ("train", "val", "test")},
}


@entry_point("train")
def train(config: TrainConfig) -> float:
    from lstmlab.runs.launch import launch

    return launch(config)[config.model.monitor]


@entry_point("evaluate")
def evaluate(config: EvaluateConfig) -> None:
    from lstmlab.runs.evaluate import evaluate

    metrics = evaluate(config)
    unchanged = metrics if config.set is None else evaluate(config.replace({"set": None}))
    for name, value in metrics.items():
        cost = "" if config.set is None else f" {value - unchanged[name]:+.6f}"
        print(f"{name:24} {value:.6f}{cost}")


@entry_point("predict")
def predict(config: PredictConfig) -> None:
    import torch

    from lstmlab.analysis.interventions import intervene, parse_settings
    from lstmlab.checkpoint import load_model

    if config.threads is not None:
        torch.set_num_threads(config.threads)
    backend = config.backend if config.set is None else "scratch"
    model = load_model(config.ckpt, backend, config.accelerator)
    read = {"ckpt", "text", "input", "output", "column", "threads", "backend", "accelerator", "set"}
    refuse_unread(read | set(model.options), of=f"model={model.config.model.name}")
    with intervene(model, parse_settings(config.set or "", model)):
        print_answers(config, model)


def print_answers(config: PredictConfig, model: Any) -> None:
    """Print the answers to the texts of `config`, or write them to its file."""
    from lstmlab.runs.predict import predict_file

    if config.input is not None:
        print(f"{config.output}: {predict_file(model, config):,} answers")
        return
    if config.text == "-" and not model.writes_text:
        lines: Iterable[str] = (line.rstrip("\r\n") for line in sys.stdin)
    else:
        lines = [sys.stdin.read() if config.text == "-" else str(config.text)]
    for line in lines:
        if line.strip() or config.text != "-":
            for piece in model.respond(line, config):
                print(piece, end="", flush=True)
            config = config.replace({"attention_map": None})  # is of the first line
        print(flush=True)


@entry_point("analyze")
def analyze(config: AnalyzeConfig) -> None:
    from lstmlab.analysis.report import analyze

    if config.text == "-":
        config = config.replace({"text": sys.stdin.read()})
    folder = analyze(config)
    written = ", ".join(sorted(path.name for path in folder.iterdir() if path.is_file()))
    print(f"\n{folder}: {written}\nOpen page.html in a browser")


@entry_point("export")
def export(config: ExportConfig) -> None:
    from lstmlab.export import export

    print(*export(config), sep="\n")


@entry_point("compare")
def compare(config: CompareConfig) -> None:
    from lstmlab.comparison import compare

    print(compare(config))


@entry_point("bench")
def bench(config: BenchConfig) -> None:
    suite, rounds, folder = config.suite, config.rounds, config.run_dir
    if suite in READ:
        refuse_unread(READ[suite], of=f"suite={suite}")

    if suite == "floors":
        from lstmlab.benchmarks import floors

        print(floors.measure_floors(config))
        return

    import torch

    from lstmlab.benchmarks import cells, compiled, engines, kinds, ladder, sample, speedrun, timing, train

    if config.threads is not None:
        torch.set_num_threads(config.threads)
    print(", ".join(f"{name} {value}" for name, value in timing.describe_machine().items()), flush=True)
    if suite == "speedrun":
        print(speedrun.measure_speedrun(config))
        return
    if suite == "engines":
        sections, wrong = engines.measure_engines(config.cell.kind, rounds)
        print(timing.write_report(suite, sections, folder, wrong_choices=wrong))
        print(*(wrong or ["No choice of an engine is wrong here."]), sep="\n")
        return
    if suite == "cells":
        sections = cells.measure_cells(rounds)
    elif suite == "kinds":
        sections = kinds.measure_kinds(rounds)
    elif suite == "ladder":
        sections = [ladder.measure_ladder(rounds)]
    elif suite == "sample":
        sections = [sample.measure_sampling(config, rounds)]
    elif suite == "compile":
        sections = [compiled.measure_compiled_step(config, rounds)]
    else:
        sections = [train.measure_training(config)]
    print(timing.write_report(suite, sections, folder))


COMMANDS = {
    "train": train,
    "evaluate": evaluate,
    "predict": predict,
    "analyze": analyze,
    "export": export,
    "compare": compare,
    "bench": bench,
}


def main() -> None:
    """Run the command that the first argument names."""
    typed = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if typed in ("-h", "--help"):
        print("lstmlab COMMAND SETTINGS, where lstmlab COMMAND --help lists the settings. Commands:\n")
        for name in COMMANDS:
            written = yaml.safe_load((CONF / f"{name}.yaml").read_text(encoding="utf-8"))
            print(f"  {name:10}{written['hydra']['help']['template'].splitlines()[0]}")
    elif typed in COMMANDS:
        sys.argv[:2] = [f"lstmlab {typed}"]
        COMMANDS[typed]()
    else:
        close = difflib.get_close_matches(typed, COMMANDS, n=1)
        meant = f" Did you mean lstmlab {close[0]}?" if close else ""
        sys.exit(f"error: there is no command {typed}.{meant} There are {', '.join(COMMANDS)}")


if __name__ == "__main__":
    main()
