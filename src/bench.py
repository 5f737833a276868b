"""Measure how fast it is, against what else there is; tables, bench.json and bench.png.

python src/bench.py suite=cells        the cells against nn.LSTM: dense, ragged, step by step, in memory
python src/bench.py suite=ladder       what each step from the equations to a fast cell is worth
python src/bench.py suite=sample       sampling from a character model
python src/bench.py suite=train        a run's training steps against a bare PyTorch loop
"""

from hydra.core.hydra_config import HydraConfig

from lstmlab.config import entry_point

ALWAYS = {"suite", "rounds", "threads"}
READ = {"cells": set(), "ladder": set(), "sample": {"seed", "cell.hidden_size", "cell.num_layers"}}


@entry_point("bench")
def main(config: dict) -> None:
    suite, rounds, folder = config["suite"], config["rounds"], config["run_dir"]
    typed = {override.partition("=")[0] for override in HydraConfig.get().overrides.task}
    if suite in READ and (unread := sorted(typed - ALWAYS - READ[suite])):
        takes = ", ".join(sorted(ALWAYS | READ[suite]))
        raise ValueError(f"{unread[0]}= means nothing to suite={suite}, which takes {takes}")

    import torch

    from lstmlab.benchmarks import cells, ladder, sample, timing, train

    if config["threads"] is not None:
        torch.set_num_threads(config["threads"])
    if suite == "cells":
        sections = cells.sections(rounds)
    elif suite == "ladder":
        sections = [ladder.section(rounds)]
    elif suite == "sample":
        sections = [sample.section(config, rounds)]
    else:
        sections = [train.section(config)]
    print(timing.report(suite, sections, folder))


if __name__ == "__main__":
    main()
