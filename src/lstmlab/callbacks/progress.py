"""The progress of a run, counted in optimizer steps from the first one to the last."""

import math
from typing import Any

from lightning.pytorch.callbacks import Timer
from lightning.pytorch.callbacks.progress import ProgressBar
from torch import Tensor

from lstmlab.progress import Progress


class RunProgress(ProgressBar):
    """Shows steps, the time left, the training loss and the latest validation loss; a validation or a test in
    progress shows its own share.

    The training loss is read from the device only when it is shown, at most twice a second, and averaged over
    the last few readings. A resumed run starts at the step that it had reached. Only the first process shows
    anything.

    Args:
        name: of the training; see `lstmlab.config.name_job`.
        stderr, bar: as for `Progress`.
    """

    def __init__(self, name: str = "training", stderr: bool = False, bar: bool = True):
        super().__init__()
        self.name, self.where = name, {"stderr": stderr, "bar": bar}
        self.is_enabled = True
        self.progress: Progress | None = None
        self.latest: Tensor | None = None  # the loss of the latest batch, on its device
        self.loss: float | None = None
        self.val_loss: float | None = None
        self.evaluated = 0  # batches of the validation or test in progress

    def disable(self) -> None:
        self.is_enabled = False

    def print(self, *args: Any, sep: str = " ", **kwargs: Any) -> None:
        if self.progress is None:
            print(*args, sep=sep, **kwargs)
        else:
            self.progress.print(sep.join(map(str, args)))

    def close(self) -> None:
        if self.progress is not None:
            self.progress.close()
            self.progress = None

    # --- training ---

    def on_train_start(self, trainer, pl_module) -> None:
        if self.is_enabled:
            done = trainer.global_step / pl_module.config.trainer.max_steps
            self.progress = Progress(self.name, done, **self.where)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.latest = outputs["loss"]
        if self.progress is not None and self.progress.is_due():
            self.show_steps(trainer, pl_module)

    def show_steps(self, trainer, pl_module, name: str | None = None, ended: bool = False) -> None:
        if self.progress is None:
            return
        if self.latest is not None:
            loss = float(self.latest) * trainer.accumulate_grad_batches
            self.loss = loss if self.loss is None else self.loss + 0.3 * (loss - self.loss)
            self.latest = None
        facts = {"loss": self.loss, "val": self.val_loss}
        step, steps = trainer.global_step, pl_module.config.trainer.max_steps
        share, at_most = step / steps, math.inf
        for timer in trainer.callbacks:
            if isinstance(timer, Timer) and (left := timer.time_remaining()) is not None:
                at_most = max(1.0, left)
                share = max(share, timer.time_elapsed() / (timer.time_elapsed() + at_most))
        known = {key: value for key, value in facts.items() if value is not None}
        self.progress.show(step, steps, known, name, share, 0.0 if ended else at_most)

    def on_train_end(self, trainer, pl_module) -> None:
        self.show_steps(trainer, pl_module, ended=True)
        self.close()

    def on_exception(self, trainer, pl_module, exception) -> None:
        self.close()

    # --- validation and test ---

    def on_validation_start(self, trainer, pl_module) -> None:
        self.start_evaluation("validation")

    def on_test_start(self, trainer, pl_module) -> None:
        self.start_evaluation("test")

    def start_evaluation(self, name: str) -> None:
        self.evaluated = 0
        if self.is_enabled and self.progress is None:
            self.progress = Progress(name, **self.where)

    def on_validation_batch_end(
        self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0
    ) -> None:
        self.count_batch(trainer, pl_module, trainer.num_val_batches)

    def on_test_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0) -> None:
        self.count_batch(trainer, pl_module, trainer.num_test_batches)

    def count_batch(self, trainer, pl_module, batches: list[int]) -> None:
        self.evaluated += 1
        if self.progress is not None and self.progress.is_due():
            if trainer.state.fn == "fit":
                self.show_steps(trainer, pl_module, f"val {self.evaluated / sum(batches):.0%}")
            else:
                self.progress.show(self.evaluated, sum(batches))

    def on_validation_end(self, trainer, pl_module) -> None:
        if trainer.state.fn != "fit":
            self.close()
            return
        monitor = pl_module.config.model.monitor
        losses = [name for name in trainer.callback_metrics if name.startswith("val/loss")]
        if losses:
            name = monitor if monitor in losses else losses[0]
            self.val_loss = float(trainer.callback_metrics[name])

    def on_test_end(self, trainer, pl_module) -> None:
        self.close()
