"""The average of the weights over training, in place of the last ones."""

from typing import Any

from lightning.pytorch.callbacks import WeightAveraging
from torch.optim.swa_utils import get_ema_multi_avg_fn


class ExponentialAverage(WeightAveraging):
    """w̄_t = w_t up to step `from_step`, from then on w̄_t = decay · w̄_{t-1} + (1 - decay) · w_t.

    Training goes on with w; validated, shown, tested and saved as a checkpoint's `state_dict` is w̄. What
    resumes a run finds w in its `current_model_state`.
    """

    def __init__(self, decay: float, from_step: int):
        super().__init__(multi_avg_fn=get_ema_multi_avg_fn(decay))
        self.from_step = from_step
        self.swapped = False  # w̄ is in the model, and w in the average's place

    def setup(self, trainer, pl_module, stage: str) -> None:
        self._device = trainer.strategy.root_device  # where the model is going to be
        super().setup(trainer, pl_module, stage)
        if self._average_model is not None:  # its count is asked for at each step: no device is waited for
            self._average_model.n_averaged = self._average_model.n_averaged.cpu()

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        if step_idx is not None and step_idx < self.from_step and self._average_model is not None:
            self._average_model.n_averaged.zero_()  # of none before: the average becomes w
        return step_idx is not None

    # Lightning's swaps at the epoch's start and end: what callbacks then show would be w

    def on_validation_start(self, trainer, pl_module) -> None:
        self._swap_models(pl_module)
        self.swapped = True

    def on_validation_end(self, trainer, pl_module) -> None:
        self._swap_models(pl_module)
        self.swapped = False

    def on_validation_epoch_start(self, trainer, pl_module) -> None:
        pass

    def on_validation_epoch_end(self, trainer, pl_module) -> None:
        pass

    def on_save_checkpoint(self, trainer, pl_module, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(trainer, pl_module, checkpoint)
        if self.swapped:  # a validation that is broken off
            average, current = checkpoint["current_model_state"], checkpoint["state_dict"]
            checkpoint["state_dict"], checkpoint["current_model_state"] = average, current
