"""trainer=ddp through the real command: two processes, the numbers of one."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from lstmlab import checkpoint
from lstmlab.config import PROJECT
from lstmlab.data.text import TextBatch
from lstmlab.processes import own_rows
from lstmlab.runs import train
from same_end import TASKS, overrides

# a small step: Adam's amplify what adding in another order rounds off otherwise
NO_DROPOUT = {name: ["optimizer.lr=0.005", "cell.dropout=0", "cell.weight_drop=0"] for name in TASKS}
NO_DROPOUT["charlm"] += ["model.dropout=0"]
NO_DROPOUT["sentiment"] += ["model.dropout=0", "model.word_dropout=0"]
NO_DROPOUT["seq2seq"] += ["model.dropout=0"]
DDP = ["trainer=ddp", "trainer.devices=2", "threads=1"]


def start(folder: Path, *arguments: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, str(PROJECT / "src/train.py"), *arguments],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ddp(name: str, text_file: Path, run_dir: Path, *more: str) -> list[str]:
    return [*DDP, *overrides(name, text_file), *more, f"hydra.run.dir={run_dir}"]


def finish(process: subprocess.Popen) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=100)
    return process.returncode, out, err


def losses(run_dir: Path) -> list[float]:
    with (run_dir / "metrics.csv").open(newline="") as file:
        return [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]


def workers(launcher: int) -> list[int]:
    """The processes that train, in the order of their ranks."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    return [int(pid) for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def wait_for(path: Path, process: subprocess.Popen) -> None:
    until = time.monotonic() + 60
    while not path.exists() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.01)
    assert process.poll() is None and path.exists()


@pytest.mark.parametrize("name", TASKS)
def test_two_processes_give_the_numbers_of_one(name, config, text_file, tmp_path):
    """The language model's also after SIGTERM in the midst of an epoch, and resume=."""
    settings = config(*overrides(name, text_file), *NO_DROPOUT[name])
    train(settings)
    one, two = Path(settings["run_dir"]), tmp_path / "two"
    process = start(tmp_path, *ddp(name, text_file, two, *NO_DROPOUT[name]))
    if name == "charlm":
        wait_for(two / "checkpoints/last.ckpt", process)
        process.send_signal(signal.SIGTERM)
        code, out, err = finish(process)
        assert (code, err, out.count(f"resume={two}")) == (143, "", 1)
        begun = checkpoint.load(str(two / "checkpoints/last.ckpt"))
        assert 0 < begun["global_step"] < len(losses(one))
        (other,) = begun["resume"]["random_states_of_others"]  # and so other dropout masks
        assert not torch.equal(other["torch"], begun["resume"]["random_states"]["torch"])
        process = start(tmp_path, f"resume={two}")
    code, out, err = finish(process)
    assert (code, err) == (0, "")
    assert (out.count("parameters;"), out.count("train/seconds")) == (1, 1)
    assert len(losses(one)) > 5
    assert losses(two) == pytest.approx(losses(one), abs=1e-5)
    expected, found = (json.loads((folder / "metrics.json").read_text()) for folder in (one, two))
    assert found.keys() == expected.keys()
    for key in expected.keys() - {"train/seconds", "train/tokens_per_second"}:
        assert found[key] == pytest.approx(expected[key], rel=1e-3, abs=1e-4), key
    ends = [checkpoint.load(f"{folder}/checkpoints/last.ckpt") for folder in (one, two)]
    if name == "charlm":  # the states of all streams, in their order
        for found, expected in zip(*(end["train_state"] for end in ends), strict=True):
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_a_killed_process_ends_the_run(text_file, tmp_path):
    run = tmp_path / "run"
    process = start(tmp_path, *ddp("charlm", text_file, run, "trainer.max_epochs=1000"))
    wait_for(run / "checkpoints/last.ckpt", process)
    pids = workers(process.pid)
    assert len(pids) == 2
    os.kill(pids[1], signal.SIGKILL)
    began = time.monotonic()
    code, _, err = finish(process)
    assert time.monotonic() - began < 60
    assert code == 1
    *_, last = err.strip().splitlines()
    assert last.startswith(f"error: process 1 of 2 (pid {pids[1]}) was killed by SIGKILL")
    assert f"resume={run}" in last
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    checkpoint.load(str(run / "checkpoints/last.ckpt"))


def test_a_users_mistake_is_one_sentence(tmp_path):
    missing = ["data=textfile", f"data.path={tmp_path}/none.txt", f"data.cache={tmp_path}"]
    code, out, err = finish(start(tmp_path, *DDP, *missing, "data.batch_size=4"))
    assert (code, out) == (1, "")
    assert err == f"error: data.path={tmp_path}/none.txt: no such file\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["trainer.devices=2"], "2 processes (trainer.devices × trainer.num_nodes) need trainer=ddp"),
        (["trainer=ddp", "data.batch_size=5"], "data.batch_size=5 cannot be shared evenly by 2 processes"),
        (["trainer=ddp", "trainer.num_nodes=2"], "torchrun --nnodes=2 --nproc-per-node=2"),
        (["-m", "trainer=ddp", "seed=0,1"], "for seed in 0 1 2; do"),
    ],
)
def test_refused(arguments, said, command):
    code, _, err = command("train", *arguments)
    assert code == 1
    assert said in err


def test_bench_measures_one_process(command):
    code, _, err = command("bench", "trainer=ddp")
    assert (code, "bench.py measures one process" in err) == (1, True)


def test_rows_are_shared():
    batch = TextBatch(torch.arange(10).view(5, 2), torch.arange(5))
    tokens, labels = zip(*(own_rows(batch, rank, 2) for rank in (0, 1)), strict=True)
    assert [part.tolist() for part in labels] == [[0, 2, 4], [1, 3]]
    assert tokens[1].tolist() == [[2, 3], [6, 7]]
