"""checkpoints/last.ckpt, from which a run goes on as if it had never been broken off."""

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lstmlab import distributed
from lstmlab.callbacks.metrics_csv import MetricsCSV


class EpochLoop(_TrainingEpochLoop):
    """Lightning's loop over the batches of an epoch, with a place between two of them to save and to stop.

    Lightning calls no hook when all that belongs to a batch is done. A checkpoint of `on_train_batch_end`
    lacks the row in the log and the validation that follow, and a restart guesses from counters which of
    it was done. Here it goes on with the next batch, or with the validation that was broken off.
    """

    def __init__(self, trainer, between_batches: Callable[[], None]):
        super().__init__(trainer, trainer.min_steps, trainer.max_steps)
        self.val_loop = trainer.fit_loop.epoch_loop.val_loop  # which knows the data by now
        self.between_batches = between_batches
        self.validation_due = False

    def _broadcast_sigterm_tensor(self) -> None:
        """Lightning's asks at each step whether to stop, and saves nothing: `between_batches` does both."""

    def on_save_checkpoint(self) -> dict:
        return super().on_save_checkpoint() | {"validation_due": self.validation_due}

    def on_load_checkpoint(self, state_dict: dict) -> None:
        super().on_load_checkpoint(state_dict)
        self.validation_due = state_dict["validation_due"]
        self.max_steps += self.validation_due  # or the validation after the last step would not take place

    def reset(self) -> None:
        super().reset()
        if self.restarting and not self.validation_due:
            self._batches_that_stepped = self.global_step
        self.restarting = self.validation_due
        self.val_loop.restarting = False

    def advance(self, data_fetcher) -> None:
        if self.validation_due:
            self.validation_due = False
            # which says whether it was the last step
            self.trainer.lightning_module.on_train_batch_end(None, None, self.batch_idx)
        else:
            super().advance(data_fetcher)

    def on_advance_end(self, data_fetcher) -> None:
        try:
            super().on_advance_end(data_fetcher)
        except SIGTERMException:
            self.validation_due = self.trainer.validating
        self.between_batches()


class LastCheckpoint(Checkpoint):
    """Write RUN_DIR/checkpoints/last.ckpt after each validation, as often as is asked for, and at SIGTERM,
    after which training ends with Lightning's SIGTERMException.

    It and every other checkpoint then hold, beside what Lightning saves, the random states, the gradients
    of a step that is not complete, how many rows metrics.csv had and how many seconds training took.

    Args:
        every_n_minutes: of training without a checkpoint; None: no limit.
        every_n_steps: optimizer steps; None: no limit.
    """

    def __init__(self, every_n_minutes: float | None, every_n_steps: int | None):
        self.seconds = 60 * every_n_minutes if every_n_minutes else float("inf")
        self.steps = every_n_steps or float("inf")
        self.resumed: dict[str, Any] | None = None
        self.validated = False
        self.asked = False  # by SIGTERM to stop, where several processes have to agree on when

    def setup(self, trainer, pl_module, stage: str) -> None:
        if stage == "fit":
            self.path = Path(trainer.default_root_dir) / "checkpoints/last.ckpt"
            trainer.fit_loop.epoch_loop = EpochLoop(trainer, lambda: self.between_batches(trainer))
            if distributed.world_size() > 1:
                # Lightning's own handler talks to the other processes in the midst of whatever they do
                trainer._signal_connector._sigterm_notifier_fn = self.ask

    def ask(self, *_: Any) -> None:
        self.asked = True

    def on_fit_start(self, trainer, pl_module) -> None:
        # a run that early stopping ended stays ended
        trainer.should_stop = any(c.wait_count >= c.patience for c in trainer.early_stopping_callbacks)

    def on_train_start(self, trainer, pl_module) -> None:
        earlier = 0.0
        if self.resumed is not None:
            earlier = self.resumed["seconds"]
            for name, gradient in self.resumed["gradients"].items():
                pl_module.get_parameter(name).grad = gradient.to(pl_module.device)
            others = self.resumed.get("random_states_of_others", [])
            states = [self.resumed["random_states"], *others]
            if distributed.rank() < len(states):  # there may be more processes than there were
                set_random_states(states[distributed.rank()])
            self.resumed = None
        self.start = time.monotonic() - earlier
        self.saved_at, self.saved_step = time.monotonic(), trainer.global_step

    def on_validation_end(self, trainer, pl_module) -> None:
        self.validated = True

    def between_batches(self, trainer) -> None:
        stop, due = distributed.any_process(
            trainer.received_sigterm or self.asked,
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
        states, *others = distributed.gather_objects(random_states())
        incomplete = (trainer.fit_loop.batch_idx + 1) % trainer.accumulate_grad_batches
        parameters = pl_module.named_parameters() if incomplete else []
        checkpoint["resume"] = {
            "random_states": states,
            "random_states_of_others": others,  # the processes after the first
            "gradients": {
                name: trainer.strategy.reduce(p.grad.clone()) for name, p in parameters if p.grad is not None
            },
            "rows": rows,
            "seconds": time.monotonic() - self.start,
        }

    def on_load_checkpoint(self, trainer, pl_module, checkpoint: dict[str, Any]) -> None:
        self.resumed = checkpoint["resume"]
        for logger in trainer.loggers:
            if isinstance(logger, MetricsCSV) and trainer.is_global_zero:
                logger.cut(checkpoint["resume"]["rows"])
        before = checkpoint["hyper_parameters"]["config"]["run_dir"]
        checkpoint["callbacks"] = moved(checkpoint["callbacks"], before, str(trainer.default_root_dir))
        for callback in trainer.early_stopping_callbacks:
            if callback.state_key in checkpoint["callbacks"]:  # which would bring back the old patience
                checkpoint["callbacks"][callback.state_key]["patience"] = callback.patience


def random_states() -> dict[str, Any]:
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


def moved(value: Any, before: str, after: str) -> Any:
    """The same containers, their paths in folder `before` now in folder `after`."""
    if isinstance(value, dict):
        return {moved(k, before, after): moved(v, before, after) for k, v in value.items()}
    return value.replace(before, after, 1) if isinstance(value, str) and value.startswith(before) else value
