"""Lightning's loop over the batches of an epoch, with a hook between two batches to save and to stop.

Exact resume relies on these private parts of Lightning 2.6. Any upgrade may change them, so
tests/callbacks/test_epoch_loop.py checks each name and fails first.

`_TrainingEpochLoop`, for `EpochLoop` below:
- `__init__(trainer, min_steps, max_steps)`. `trainer.fit_loop.epoch_loop` holds the loop, and a
  callback's `setup` can still replace it. Its `val_loop` has its data source by then, so the replacement
  takes it over.
- `run(data_fetcher)` calls `reset()`, then for each batch `advance(data_fetcher)`,
  `on_advance_end(data_fetcher)` and `on_iteration_done()`, which sets `restarting` to False.
- `restarting` is True in the first `reset()` after a checkpoint was loaded. `advance` would then guess, from
  counters, which batch or validation to skip.
- `advance` takes a training step with all its hooks. With several processes it calls
  `_broadcast_sigterm_tensor()`.
- `on_advance_end` validates if a validation is due, with `trainer.validating` set, and then writes the step's
  row to the loggers. It raises SIGTERMException once `trainer.received_sigterm` is set, even in
  the middle of a validation.
- `on_save_checkpoint()` and `on_load_checkpoint(state_dict)` save and load a dict of the loop.
- `max_steps` ends the loop when `global_step` reaches it; `batch_idx` counts the batches of the epoch.
- `_batches_that_stepped` is the step that loggers write. It is saved before its increment, so `reset` has
  to correct it.

`LastCheckpoint`:
- `trainer._signal_connector._sigterm_notifier_fn(signum, frame)` handles SIGTERM.
  `register_signal_handlers()` looks it up after every callback's `setup`.
- `trainer.fit_loop.batch_idx`, `trainer.should_stop`, and `wait_count` and `patience` of each of
  `trainer.early_stopping_callbacks`.
- `checkpoint["callbacks"]` is read, by `state_key`, after every callback's `on_load_checkpoint`.

`MetricsCSV`, of `ExperimentWriter`:
- `__init__` calls `_check_log_dir_exists()`, which would delete an existing file.
- `save()` calls `_rewrite_with_new_header(fieldnames)`, and writes the rows in `metrics` with the columns in
  `metrics_keys` to `metrics_file_path`. `CSVLogger` keeps the writer in `_experiment`.

`ExponentialAverage`, of `WeightAveraging`:
- `setup` makes `_average_model` on `_device`; `_swap_models(pl_module)` exchanges it with the model;
  `on_save_checkpoint` saves the model's own weights as `current_model_state`.

The data: the trainer keeps a loader's own `state_dict()` in `loops.fit_loop.state_dict.combined_loader`.
"""

from collections.abc import Callable
from typing import Any

from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.utilities.exceptions import SIGTERMException


class EpochLoop(_TrainingEpochLoop):
    """Calls `between_batches` when a batch is done, with its log row and its validation.

    Lightning has no hook there. A checkpoint saved in `on_train_batch_end` lacks the log row and the
    validation that follow, and on resuming Lightning guesses which of them were done. This loop resumes with
    the next batch, or with the validation that was interrupted.
    """

    def __init__(self, trainer, between_batches: Callable[[], None]):
        super().__init__(trainer, trainer.min_steps, trainer.max_steps)
        self.val_loop = trainer.fit_loop.epoch_loop.val_loop
        self.between_batches = between_batches
        self.validation_due = False

    def _broadcast_sigterm_tensor(self) -> None:
        """Do nothing. Lightning would stop all processes without saving; `between_batches` does both."""

    def on_save_checkpoint(self) -> dict:
        return super().on_save_checkpoint() | {"validation_due": self.validation_due}

    def on_load_checkpoint(self, state_dict: dict) -> None:
        super().on_load_checkpoint(state_dict)
        self.validation_due = state_dict["validation_due"]
        # Leaves room for the validation after the last step, which would otherwise be skipped
        self.max_steps += self.validation_due

    def reset(self) -> None:
        super().reset()
        if self.restarting and not self.validation_due:
            self._batches_that_stepped = self.global_step
        self.restarting = self.validation_due
        self.val_loop.restarting = False

    def advance(self, data_fetcher) -> None:
        if self.validation_due:
            self.validation_due = False
            # The interrupted validation may be the one after the last step
            model: Any = self.trainer.lightning_module
            model.stop_when_done()
        else:
            super().advance(data_fetcher)

    def on_advance_end(self, data_fetcher) -> None:
        try:
            super().on_advance_end(data_fetcher)
        except SIGTERMException:
            self.validation_due = self.trainer.validating
        self.between_batches()
