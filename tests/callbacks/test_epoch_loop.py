"""The parts of Lightning that exact resume relies on, name by name."""

import inspect
import re
from typing import Any

import lightning as L
from lightning.fabric.loggers.csv_logs import _ExperimentWriter
from lightning.pytorch.callbacks import EarlyStopping, WeightAveraging
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.loops.fit_loop import _FitLoop
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.trainer.connectors.checkpoint_connector import _CheckpointConnector

from lstmlab.callbacks import epoch_loop

METHODS: list[tuple[type, str, list[str]]] = [
    (_TrainingEpochLoop, "__init__", ["trainer", "min_steps", "max_steps"]),
    (_TrainingEpochLoop, "run", ["data_fetcher"]),
    (_TrainingEpochLoop, "reset", []),
    (_TrainingEpochLoop, "advance", ["data_fetcher"]),
    (_TrainingEpochLoop, "on_advance_end", ["data_fetcher"]),
    (_TrainingEpochLoop, "on_iteration_done", []),
    (_TrainingEpochLoop, "_broadcast_sigterm_tensor", []),
    (_TrainingEpochLoop, "on_save_checkpoint", []),
    (_TrainingEpochLoop, "on_load_checkpoint", ["state_dict"]),
    (ExperimentWriter, "_check_log_dir_exists", []),
    (ExperimentWriter, "_rewrite_with_new_header", ["fieldnames"]),
    (ExperimentWriter, "save", []),
    (WeightAveraging, "setup", ["trainer", "pl_module", "stage"]),
    (WeightAveraging, "_swap_models", ["pl_module"]),
    (WeightAveraging, "on_save_checkpoint", ["trainer", "pl_module", "checkpoint"]),
]
CALLS: list[tuple[Any, list[str]]] = [  # in this order
    (_TrainingEpochLoop.run, ["reset()", "advance(", "on_advance_end(", "on_iteration_done()"]),
    (_TrainingEpochLoop.on_iteration_done, ["_restarting = False"]),
    (_TrainingEpochLoop.advance, ["if self.restarting and ", "self._broadcast_sigterm_tensor()"]),
    (_TrainingEpochLoop.on_advance_end, [".validating = True", "val_loop.run()", "_save_loggers_on_train"]),
    (_TrainingEpochLoop.on_advance_end, ["self.trainer.received_sigterm", "raise SIGTERMException"]),
    (_TrainingEpochLoop.on_save_checkpoint, ["_batches_that_stepped"]),
    (_ExperimentWriter.__init__, ["self._check_log_dir_exists()"]),
    (ExperimentWriter.save, ["self._rewrite_with_new_header(self.metrics_keys)", "self.metrics = []"]),
    (WeightAveraging.setup, ["device = self._device", "self._average_model = "]),
    (WeightAveraging.on_save_checkpoint, ['checkpoint["current_model_state"] = checkpoint["state_dict"]']),
    (_FitLoop.on_save_checkpoint, ["combined_loader"]),
    (_CheckpointConnector.restore_callbacks, ["_call_callbacks_on_load_checkpoint(", "_load_state_dict("]),
    (L.Trainer._run, ["_call_setup_hook(", "_restore_modules_and_callbacks(", "register_signal_handlers("]),
]


def test_lightning_has_what_exact_resume_relies_on(tmp_path):
    """A changed version of Lightning fails here first, and the failure names the part."""
    trainer: Any = L.Trainer(
        accelerator="cpu", logger=False, callbacks=[EarlyStopping("loss")], default_root_dir=tmp_path
    )
    loop = trainer.fit_loop.epoch_loop
    signals = trainer._signal_connector
    csv_logger = CSVLogger(tmp_path)
    attributes: list[tuple[Any, list[str]]] = [
        (trainer, ["validating", "received_sigterm", "should_stop", "early_stopping_callbacks"]),
        (trainer.fit_loop, ["epoch_loop", "batch_idx"]),
        (loop, ["val_loop", "restarting", "max_steps", "global_step", "batch_idx", "_batches_that_stepped"]),
        (loop.val_loop, ["restarting"]),
        (signals, ["_sigterm_notifier_fn", "register_signal_handlers"]),
        (trainer.early_stopping_callbacks[0], ["wait_count", "patience", "state_key"]),
        (csv_logger, ["_experiment"]),
        (csv_logger.experiment, ["metrics", "metrics_keys", "metrics_file_path"]),
        (WeightAveraging(), ["_average_model", "_device"]),
    ]
    assert type(loop) is _TrainingEpochLoop
    for holder, names in attributes:
        for name in names:
            assert hasattr(holder, name), f"{type(holder).__name__} has no {name}"

    for cls, name, parameters in METHODS:
        found = list(inspect.signature(getattr(cls, name)).parameters)
        assert found == ["self", *parameters], f"{cls.__name__}.{name}"
    assert len(inspect.signature(signals._sigterm_notifier_fn).parameters) == 2

    for function, calls in [*CALLS, (signals.register_signal_handlers, ["self._sigterm_notifier_fn"])]:
        source, place = inspect.getsource(function), 0
        for call in calls:
            place = source.find(call, place)
            assert place >= 0, f"{function.__qualname__} lacks {call}, or has it elsewhere"

    listed = {name for _, names in attributes for name in names} | {name for _, name, _ in METHODS}
    missing = {name for name in listed if not re.search(rf"\b{name}\b", str(epoch_loop.__doc__))}
    assert not missing, "what is checked here stands in the list of epoch_loop.py"
