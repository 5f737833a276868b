"""Start a run in one or several processes, and stop them together."""

import multiprocessing
import os
import shlex
import signal
import socket
import threading
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException, spawn

from lstmlab.config import USER_ERRORS, is_sweep
from lstmlab.distributed import started_by_torchrun
from lstmlab.schema import TrainConfig, TrainerConfig, check

GRACE = 20  # seconds that the other processes have to exit once one has failed
SIGTERM_CODE = 128 + signal.SIGTERM


def launch(config: TrainConfig) -> dict[str, float]:
    """Train in this process or, with `trainer=ddp`, in `trainer.devices` new ones; see `runs.train`.

    Raises what `train` raises, and ValueError if this process cannot start the others.
    """
    if config.trainer.strategy == "ddp" and not started_by_torchrun():
        refuse_ddp(config.trainer)
        return launch_processes(config)
    # Imports Lightning, which the launcher of several processes does not need
    from lstmlab.runs.train import train

    return train(config)


def refuse_ddp(trainer: TrainerConfig) -> None:
    """Raise ValueError if this process cannot start those of `trainer=ddp`; the message says what to do."""
    if is_sweep():
        raise ValueError(
            "trainer=ddp does not work with -m; start one run after the other: "
            "for seed in 0 1 2; do python src/train.py trainer=ddp seed=$seed; done"
        )
    if trainer.num_nodes > 1:
        raise ValueError(
            f"trainer.num_nodes={trainer.num_nodes}: start the run on each machine with torchrun "
            f"--nnodes={trainer.num_nodes} --nproc-per-node={trainer.devices} "
            "--rdzv-backend=c10d --rdzv-endpoint=HOST:29500 src/train.py trainer=ddp …"
        )
    if trainer.accelerator == "gpu" and 0 < torch.cuda.device_count() < trainer.devices:
        raise ValueError(
            f"trainer.devices={trainer.devices}, but PyTorch finds {torch.cuda.device_count()} GPUs"
        )


def run_worker(local_rank: int, settings: dict[str, Any], port: int, results: Any) -> None:
    """Train in a process that `launch_processes` started."""
    # Ctrl-C in the terminal reaches the launcher only, which passes it on
    os.setsid()
    launcher = multiprocessing.parent_process()
    # From here on, the death of the parent is delivered as SIGINT
    if launcher is None or not launcher.is_alive():
        os._exit(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "lstmlab"}
    os.environ |= {"RANK": str(local_rank), "LOCAL_RANK": str(local_rank)}
    os.environ |= {"WORLD_SIZE": str(settings["trainer"]["devices"])}

    # Lightning takes seconds to import, during which Ctrl-C must not reach this process
    from lstmlab.runs.train import train

    try:
        metrics = train(check("train", settings))
    except USER_ERRORS as error:
        results.put((type(error), str(error)))
        # Leaving the process group would wait for the others
        os._exit(1)
    if local_rank == 0:
        results.put((None, metrics))
    dist.barrier()
    dist.destroy_process_group()


def launch_processes(config: TrainConfig) -> dict[str, float]:
    """Run `train(config)` in `trainer.devices` processes on this machine; returns its metrics.

    If one process fails, the others are stopped. Raises what that process raised, or ChildProcessError with
    its number if it was killed. SIGTERM and Ctrl-C are passed on and end in SystemExit, as in one process.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    results = torch.multiprocessing.get_context("spawn").SimpleQueue()
    count = config.trainer.devices
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    context = spawn(run_worker, (config.to_plain(), port, results), nprocs=count, join=False)
    assert context is not None
    code = None

    def stop(number: int, _: Any) -> None:
        nonlocal code
        again, code = code is not None, 128 + number
        for process in context.processes:
            if process.is_alive():
                process.kill() if again else process.terminate()

    main_thread = threading.current_thread() is threading.main_thread()
    before = {n: signal.signal(n, stop) for n in (signal.SIGINT, signal.SIGTERM)} if main_thread else {}
    try:
        while not context.join(grace_period=GRACE):
            pass
    except (ProcessExitedException, ProcessRaisedException) as error:
        if code is not None:
            raise SystemExit(code) from None
        if not results.empty():
            kind, value = results.get()
            if kind is not None:
                raise kind(value) from None
        if isinstance(error, ProcessRaisedException):
            raise
        if error.exit_code == SIGTERM_CODE:
            raise SystemExit(SIGTERM_CODE) from None
        how = f"was killed by {error.signal_name}" if error.signal_name else f"ended with {error.exit_code}"
        raise ChildProcessError(
            f"process {error.error_index} of {count} (pid {error.error_pid}) {how}, so the run ended; "
            f"to resume: python src/train.py {shlex.quote(f'resume={config.run_dir}')}"
        ) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return results.get()[1]
