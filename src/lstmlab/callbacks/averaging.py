"""Average the weights over training."""

from typing import Any

from lightning.pytorch.callbacks import WeightAveraging
from torch.optim.swa_utils import get_ema_multi_avg_fn


class ExponentialAverage(WeightAveraging):
    """w̄_t = w_t up to step `from_step`, and then w̄_t = decay · w̄_{t-1} + (1 - decay) · w_t.

    Training continues with w. Validation, the callbacks that show the model, the test and the `state_dict` of
    checkpoints use w̄. A resumed run reads w from `current_model_state`.
    """

    def __init__(self, decay: float, from_step: int):
        super().__init__(multi_avg_fn=get_ema_multi_avg_fn(decay))
        self.from_step = from_step
        self.swapped = False  # True while the model holds w̄, and the average w

    def setup(self, trainer, pl_module, stage: str) -> None:
        # Where the model will be
        self._device = trainer.strategy.root_device
        super().setup(trainer, pl_module, stage)
        if self._average_model is not None:
            # Read at each step, which must not wait for the device
            self._average_model.n_averaged = self._average_model.n_averaged.cpu()

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        if step_idx is not None and step_idx < self.from_step and self._average_model is not None:
            # Restarts the average: the next update copies w
            self._average_model.n_averaged.zero_()
        return step_idx is not None

    # Lightning swaps around the validation epoch only, so other callbacks would show w

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
        # Saved during a validation that was interrupted
        if self.swapped:
            average, current = checkpoint["current_model_state"], checkpoint["state_dict"]
            checkpoint["state_dict"], checkpoint["current_model_state"] = average, current
