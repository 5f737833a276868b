"""How long a run trains until it predicts Tiny Shakespeare well."""

import time
from typing import Any

import lightning as L

TARGET = 1.55  # nats per character, of val/loss_cold


class Stopwatch(L.Callback):
    """Ends training at the first validation at which val/loss_cold is below `TARGET`.

    The clock runs from the first batch after the start, or after a validation, to the next validation. So it
    counts the loading of batches, training steps, logging and what callbacks do in between, but neither the
    set-up nor validations, what callbacks do at their end, or checkpoints.
    """

    def __init__(self) -> None:
        self.seconds = self.processor = 0.0  # of the clock on the wall, and of all threads of this process
        self.start: tuple[float, float] | None = None
        self.losses: list[float] = []
        self.steps = self.tokens = 0

    def on_train_batch_start(self, trainer, pl_module, batch: Any, batch_idx: int) -> None:
        if self.start is None:
            self.start = time.perf_counter(), time.process_time()
        self.tokens += int(pl_module.count_tokens(batch))

    def on_validation_start(self, trainer, pl_module) -> None:
        assert self.start is not None
        self.seconds += time.perf_counter() - self.start[0]
        self.processor += time.process_time() - self.start[1]
        self.steps, self.start = trainer.global_step, None

    def on_validation_end(self, trainer, pl_module) -> None:
        self.losses.append(float(trainer.callback_metrics["val/loss_cold"]))
        trainer.should_stop |= self.losses[-1] < TARGET
