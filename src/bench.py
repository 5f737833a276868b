"""Measure speed against the alternatives; writes tables, bench.json and bench.png.

python src/bench.py suite=cells        the cells against nn.LSTM: dense, ragged, step by step, memory
python src/bench.py suite=engines      each engine of cell=fused, and where cell.engine=auto is wrong here
python src/bench.py suite=kinds        newer kinds against nn.GRU and the LSTM
python src/bench.py suite=ladder       what each step from the equations to a fast cell gains
python src/bench.py suite=sample       sampling from a character model
python src/bench.py suite=compile cell=fused   a training step with and without torch.compile
python src/bench.py suite=train        a run's training steps against a bare PyTorch loop
python src/bench.py suite=floors data=imdb   how good baselines without a network are (no bench.png)
"""

<<<<<<< HEAD
from lstmlab.__main__ import bench as main
=======
from lstmlab.config import entry_point, refuse_unread
from lstmlab.schema import BenchConfig

TIMED = {"suite", "rounds", "threads"}
# Settings that each suite reads; train and compile read all of them
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


@entry_point("bench")
def main(config: BenchConfig) -> None:
    suite, rounds, folder = config.suite, config.rounds, config.run_dir
    if suite in READ:
        refuse_unread(READ[suite], of=f"suite={suite}")

    if suite == "floors":
        from lstmlab.benchmarks import floors

        print(floors.measure_floors(config))
        return

    import torch

    from lstmlab.benchmarks import cells, compiled, engines, kinds, ladder, sample, timing, train

    if config.threads is not None:
        torch.set_num_threads(config.threads)
    print(", ".join(f"{name} {value}" for name, value in timing.describe_machine().items()), flush=True)
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

>>>>>>> 115a8e2 (Cells: an sLSTM's heads side by side in the kernel; bench.py suite=kinds; documents of the new kinds)

if __name__ == "__main__":
    main()
