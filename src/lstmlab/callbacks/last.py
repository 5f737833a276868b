"""checkpoints/last.ckpt, from which a run resumes as if it had never been interrupted."""

import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lstmlab import distributed
from lstmlab.callbacks.epoch_loop import EpochLoop
from lstmlab.loggers import MetricsCSV


class LastCheckpoint(Checkpoint):
    """Write RUN_DIR/checkpoints/last.ckpt after each validation, at regular intervals, and after SIGTERM,
    which then ends training with Lightning's SIGTERMException.

    With this callback, every checkpoint also holds the random states, the gradients of an incomplete
    optimizer step, the number of rows in metrics.csv and the seconds of training.

    Args:
        every_n_minutes: the longest time between two checkpoints; None: no limit.
        every_n_steps: the most optimizer steps between two checkpoints; None: no limit.
    """

    def __init__(self, every_n_minutes: float | None, every_n_steps: int | None):
        self.seconds = 60 * every_n_minutes if every_n_minutes else float("inf")
        self.steps = every_n_steps or float("inf")
        self.resume_state: dict[str, Any] | None = None
        self.validated = False
        # Several processes have to agree on when to stop
        self.sigterm_received = False

    def setup(self, trainer, pl_module, stage: str) -> None:
        if stage == "fit":
            self.path = Path(trainer.default_root_dir) / "checkpoints/last.ckpt"
            trainer.fit_loop.epoch_loop = EpochLoop(trainer, lambda: self.save_and_stop(trainer))
            if distributed.world_size() > 1:
                # Lightning's handler would call a collective in the middle of another one
                trainer._signal_connector._sigterm_notifier_fn = self.note_sigterm

    def note_sigterm(self, *_: Any) -> None:
        self.sigterm_received = True

    def on_fit_start(self, trainer, pl_module) -> None:
        # A run that early stopping has ended must not train on
        trainer.should_stop = any(c.wait_count >= c.patience for c in trainer.early_stopping_callbacks)

    def on_train_start(self, trainer, pl_module) -> None:
        earlier = 0.0
        if self.resume_state is not None:
            earlier = self.resume_state["seconds"]
            processes = self.resume_state["processes"]
            # There may be more processes than before
            if distributed.rank() < len(processes):
                set_random_states(processes[distributed.rank()]["random_states"])
            # Each process takes its own gradients: their mean would be summed in another order
            if distributed.world_size() == len(processes):
                processes = [processes[distributed.rank()]]
            for name in processes[0]["gradients"]:
                mean = torch.stack([process["gradients"][name] for process in processes]).mean(0)
                pl_module.get_parameter(name).grad = mean.to(pl_module.device)
            self.resume_state = None
        self.start = time.monotonic() - earlier
        self.saved_at, self.saved_step = time.monotonic(), trainer.global_step

    def on_validation_end(self, trainer, pl_module) -> None:
        self.validated = True

    def save_and_stop(self, trainer) -> None:
        """Save if a checkpoint is due, and stop after SIGTERM. Called between two batches."""
        stop, due = distributed.any_process(
            trainer.received_sigterm or self.sigterm_received,
            self.validated
            or trainer.global_step - self.saved_step >= self.steps
            or time.monotonic() - self.saved_at >= self.seconds,
        )
        if stop or due:
            trainer.save_checkpoint(self.path)
            self.saved_at, self.saved_step = time.monotonic(), trainer.global_step
            self.validated = False
        if stop:
            raise SIGTERMException

    def on_save_checkpoint(self, trainer, pl_module, checkpoint: dict[str, Any]) -> None:
        csv_logs = [logger for logger in trainer.loggers if isinstance(logger, MetricsCSV)]
        rows = sum(logger.experiment.rows for logger in csv_logs) if trainer.is_global_zero else 0
        incomplete = (trainer.fit_loop.batch_idx + 1) % trainer.accumulate_grad_batches
        parameters = pl_module.named_parameters() if incomplete else []
        gradients = {name: p.grad.cpu() for name, p in parameters if p.grad is not None}
        checkpoint["resume"] = {
            "processes": distributed.gather_objects(
                {"random_states": get_random_states(), "gradients": gradients}
            ),
            "rows": rows,
            "seconds": time.monotonic() - self.start,
        }

    def on_load_checkpoint(self, trainer, pl_module, checkpoint: dict[str, Any]) -> None:
        self.resume_state = checkpoint["resume"]
        for logger in trainer.loggers:
            if isinstance(logger, MetricsCSV) and trainer.is_global_zero:
                logger.keep_rows(checkpoint["resume"]["rows"])
        before = checkpoint["hyper_parameters"]["config"]["run_dir"]
        checkpoint["callbacks"] = replace_folder(
            checkpoint["callbacks"], before, str(trainer.default_root_dir)
        )
        for callback in trainer.early_stopping_callbacks:
            # The checkpoint would restore the old patience
            if callback.state_key in checkpoint["callbacks"]:
                checkpoint["callbacks"][callback.state_key]["patience"] = callback.patience


def get_random_states() -> dict[str, Any]:
    """The states of all random number generators, as plain containers and tensors."""
    numpy = np.random.get_state(legacy=False)
    numpy["state"]["key"] = numpy["state"]["key"].tolist()
    return {
        "python": random.getstate(),
        "numpy": numpy,
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all(),
    }


def set_random_states(states: dict[str, Any]) -> None:
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    torch.set_rng_state(states["torch"])
    torch.cuda.set_rng_state_all(states["cuda"])


def replace_folder(value: Any, before: str, after: str) -> Any:
    """A copy of the containers in which paths in folder `before` are in folder `after`."""
    if isinstance(value, dict):
        return {replace_folder(k, before, after): replace_folder(v, before, after) for k, v in value.items()}
    return value.replace(before, after, 1) if isinstance(value, str) and value.startswith(before) else value
