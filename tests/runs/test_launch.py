"""trainer=ddp: two processes give the numbers of one, and are interrupted, resumed and killed together."""

import csv
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from lstmlab import checkpoint
from lstmlab.config import PROJECT
from lstmlab.data.text import TextBatch
from lstmlab.distributed import take_own_rows
from lstmlab.runs.launch import run_worker
from lstmlab.runs.train import train
from lstmlab.schema import TrainConfig
from same_end import SERVER, TASKS, assert_same_end, fork, overrides, resumed, run_worker_until

# A small learning rate: Adam amplifies the rounding of another order of addition
NO_DROPOUT = {name: ["optimizer.lr=0.005", "cell.dropout=0", "cell.weight_drop=0"] for name in TASKS}
NO_DROPOUT["charlm"] += ["model.dropout=0", "model.reset_probability=0"]
NO_DROPOUT["sentiment"] += ["model.dropout=0", "model.word_dropout=0"]
NO_DROPOUT["seq2seq"] += ["model.dropout=0"]
DDP = ["trainer=ddp", "trainer.devices=2", "threads=1"]
RESULTS = SERVER.SimpleQueue()


def start_command(folder: Path, *arguments: str) -> subprocess.Popen:
    """The real command, in a process of its own."""
    return subprocess.Popen(
        [sys.executable, str(PROJECT / "src/train.py"), *arguments],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(process: subprocess.Popen) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=100)
    return process.returncode, out, err


def find_free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def start_two(settings: TrainConfig) -> list:
    """The two processes that the command would start, without the seconds that importing torch takes."""
    port = find_free_port()
    return [fork(run_worker, rank, settings.to_plain(), port, RESULTS) for rank in (0, 1)]


def join_all(processes: list) -> list[int]:
    for process in processes:
        process.join(100)
    return [process.exitcode for process in processes]


def read_losses(run_dir: Path) -> list[float]:
    with (run_dir / "metrics.csv").open(newline="") as file:
        return [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]


def find_workers(launcher: int) -> list[int]:
    """The processes that train, by rank."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    return [int(pid) for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def wait_for_checkpoint(path: Path, process: subprocess.Popen | None = None) -> None:
    """Wait until the checkpoint is written, or replaced if it exists."""
    before, until = path.stat().st_mtime_ns if path.exists() else 0, time.monotonic() + 100
    while not path.exists() or path.stat().st_mtime_ns == before:
        assert time.monotonic() < until and (process is None or process.poll() is None)
        time.sleep(0.01)


@pytest.mark.parametrize("name", TASKS)
def test_two_processes_give_the_numbers_of_one(name, config, text_file):
    one, two = (config(*overrides(name, text_file), *NO_DROPOUT[name], *o) for o in ([], DDP))
    train(one)
    assert join_all(start_two(two)) == [0, 0]
    folders = [Path(settings.run_dir) for settings in (one, two)]
    expected, found = map(read_losses, folders)
    assert len(expected) > 5
    assert found == pytest.approx(expected, abs=1e-5)
    expected, found = (json.loads((folder / "metrics.json").read_text()) for folder in folders)
    assert found.keys() == expected.keys()
    for key in expected.keys() - {"train/seconds", "train/tokens_per_second"}:
        assert found[key] == pytest.approx(expected[key], rel=1e-3, abs=1e-4), key
    ends = [checkpoint.load_checkpoint(f"{folder}/checkpoints/last.ckpt") for folder in folders]
    if name == "charlm":  # the states of all streams, in order
        for found, expected in zip(*(end["train_state"] for end in ends), strict=True):
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("batch", [6, 7], ids=["in a step", "between steps"])
@pytest.mark.parametrize("name", TASKS)
def test_interrupted_processes_resume_bit_for_bit(name, batch, config, text_file):
    """With dropout, and SIGTERM to one process in the middle of an epoch."""
    more = ["model.r_drop=1", "callbacks=averaging"] if name == "seq2seq" else []
    whole, interrupted = (config(*overrides(name, text_file), *DDP, *more) for _ in range(2))
    assert join_all(start_two(whole)) == [0, 0]
    port = find_free_port()
    stopped = [fork(run_worker_until, batch, rank, interrupted, port, RESULTS) for rank in (0, 1)]
    assert join_all(stopped) == [143, 143]

    loaded = checkpoint.load_checkpoint(f"{interrupted.run_dir}/checkpoints/last.ckpt")
    assert loaded["global_step"] == (batch + 1) // 2
    first, second = loaded["resume"]["processes"]
    assert not torch.equal(first["random_states"]["torch"], second["random_states"]["torch"])
    assert first["gradients"].keys() == second["gradients"].keys()
    assert bool(first["gradients"]) == (batch == 6)
    assert not any(torch.equal(g, second["gradients"][name]) for name, g in first["gradients"].items())

    assert join_all(start_two(resumed(interrupted))) == [0, 0]
    assert_same_end(interrupted, whole)


def test_resume_with_another_number_of_processes(config, text_file):
    found = []
    for devices in ((1, 1), (1, 2), (2, 1)):
        given = [*overrides("charlm", text_file), *NO_DROPOUT["charlm"], "trainer.max_epochs=1"]
        settings = config(*given)
        for count, epochs in zip(devices, (1, 2), strict=True):
            strategy = "ddp" if count == 2 else "auto"
            changes = {"strategy": strategy, "devices": count, "max_epochs": epochs}
            settings = settings.replace({f"trainer.{key}": value for key, value in changes.items()})
            if count == 2:
                assert join_all(start_two(settings)) == [0, 0]
            else:
                train(settings)
            settings = resumed(settings).replace({"exact": False})
        found.append(read_losses(Path(settings.run_dir)))
    assert len(found[0]) == 10
    assert found[1] == pytest.approx(found[0], abs=1e-5)
    assert found[2] == pytest.approx(found[0], abs=1e-5)


def test_no_process_survives_an_interrupt_or_a_kill(text_file, tmp_path):
    """Ctrl-C, or SIGKILL of a worker or of the launcher: all processes end, and last.ckpt is intact."""
    run = tmp_path / "run"
    last = run / "checkpoints/last.ckpt"
    given = [*DDP, *overrides("charlm", text_file), f"hydra.run.dir={run}", "trainer.max_epochs=1000"]
    step = 0
    for stop in ("Ctrl-C", "rank 0", "command", "command, early"):
        process = start_command(tmp_path, *given)
        if stop != "command, early":
            wait_for_checkpoint(last, process)
        while len(pids := find_workers(process.pid)) < 2:
            time.sleep(0.01)
        if stop == "Ctrl-C":
            process.send_signal(signal.SIGINT)
        else:
            os.kill(pids[0] if stop == "rank 0" else process.pid, signal.SIGKILL)
        began = time.monotonic()
        code, out, err = wait_for(process)
        while any(Path(f"/proc/{pid}").exists() for pid in pids):
            time.sleep(0.01)
            assert time.monotonic() - began < 60
        if stop == "Ctrl-C":
            assert (code, err, out.count(" parameters\n"), out.count(f"resume={run}")) == (130, "", 1, 1)
        elif stop == "rank 0":
            assert code == 1
            *_, message = err.strip().splitlines()
            assert message.startswith(f"error: process 0 of 2 (pid {pids[0]}) was killed by SIGKILL")
            assert f"resume={run}" in message
        else:
            assert code == -signal.SIGKILL
        assert checkpoint.load_checkpoint(str(last))["global_step"] > step or stop == "command, early"
        step = checkpoint.load_checkpoint(str(last))["global_step"]
        given = [f"resume={run}"]


def test_a_mistake_in_a_process_ends_in_one_sentence(tmp_path):
    missing = ["data=textfile", f"data.path={tmp_path}/none.txt", f"data.cache={tmp_path}"]
    code, out, err = wait_for(start_command(tmp_path, *DDP, *missing, "data.batch_size=4"))
    assert (code, out) == (1, "")
    assert err == f"error: data.path={tmp_path}/none.txt: no such file, and none that matches\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trainer.devices=2"], "2 processes (trainer.devices × trainer.num_nodes) need trainer=ddp"),
        (["trainer=ddp", "data.batch_size=5"], "data.batch_size=5 cannot be shared evenly by 2 processes"),
        (["trainer=ddp", "trainer.num_nodes=2"], "torchrun --nnodes=2 --nproc-per-node=2"),
        (
            ["-m", "trainer=ddp", "seed=0,1"],
            "trainer=ddp does not work with -m; start one run after the other: for seed",
        ),
    ],
)
def test_conflicting_settings_are_refused(arguments, message, command):
    code, _, err = command("train", *arguments)
    assert code == 1
    assert message in err


def test_bench_measures_one_process(command):
    code, _, err = command("bench", "trainer=ddp")
    assert (code, "bench.py measures one process" in err) == (1, True)


def test_each_process_takes_every_second_row():
    batch = TextBatch(torch.arange(10).view(5, 2), torch.arange(5))
    tokens, labels = zip(*(take_own_rows(batch, rank, 2) for rank in (0, 1)), strict=True)
    assert [part.tolist() for part in labels] == [[0, 2, 4], [1, 3]]
    assert tokens[1].tolist() == [[2, 3], [6, 7]]
