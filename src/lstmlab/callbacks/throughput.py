"""Training speed."""

import time

import lightning as L


class Throughput(L.Callback):
    """Log `train/tokens_per_second` every trainer.log_every_n_steps steps and at the last step.

    Tokens are characters for the language model, and words or subwords elsewhere. The time spent on
    validation and checkpoints is not counted.
    """

    def on_train_start(self, trainer, pl_module) -> None:
        self.tokens, self.start = 0, time.perf_counter()

    def on_validation_end(self, trainer, pl_module) -> None:
        self.on_train_start(trainer, pl_module)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.tokens += pl_module.count_tokens(batch)
        last = trainer.global_step == pl_module.config.trainer.max_steps
        if (trainer.global_step % trainer.log_every_n_steps == 0 or last) and self.tokens:
            rate = self.tokens / (time.perf_counter() - self.start)
            pl_module.log("train/tokens_per_second", rate, prog_bar=True, reduce_fx="sum")
            self.on_train_start(trainer, pl_module)
