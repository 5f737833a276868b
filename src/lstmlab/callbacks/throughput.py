"""Training speed, and the tokens seen so far."""

import math
import time
from typing import Any

import lightning as L
import torch

from lstmlab import distributed


class Throughput(L.Callback):
    """Log `train/tokens_per_second` every trainer.log_every_n_steps steps and at the last step, and
    `train/tokens`, the number since the run began, at the same steps and at each validation.

    Tokens are characters for a language model of characters, and words or subwords elsewhere. The speed
    leaves out the time spent on validation and checkpoints.
    """

    def __init__(self) -> None:
        # Of this process. The first one also has those from before an interruption
        self.seen: Any = None
        self.tokens: Any = 0
        self.start = 0.0

    def state_dict(self) -> dict[str, Any]:
        return {"seen": sum(distributed.gather_objects(torch.as_tensor(self.seen).tolist()))}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seen = state_dict["seen"] if distributed.rank() == 0 else 0

    def on_train_start(self, trainer, pl_module) -> None:
        if self.seen is None:
            # Unknown if the run was resumed from a checkpoint of a run without this callback
            self.seen = math.nan if trainer.global_step else 0
        self.restart()

    def on_validation_epoch_end(self, trainer, pl_module) -> None:
        if trainer.state.fn == "fit":
            self.log_seen(pl_module)

    def on_validation_end(self, trainer, pl_module) -> None:
        self.restart()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        count = pl_module.count_tokens(batch)
        self.tokens, self.seen = self.tokens + count, self.seen + count
        last = trainer.global_step == pl_module.config.trainer.max_steps
        if (trainer.global_step % trainer.log_every_n_steps == 0 or last) and self.tokens:
            rate = self.tokens / (time.perf_counter() - self.start)
            pl_module.log("train/tokens_per_second", rate, prog_bar=True, reduce_fx="sum")
            self.log_seen(pl_module)
            self.restart()

    def restart(self) -> None:
        self.tokens, self.start = 0, time.perf_counter()

    def log_seen(self, pl_module) -> None:
        seen = torch.as_tensor(
            self.seen, dtype=torch.get_default_dtype()
        )  # as Lightning does, with a warning
        pl_module.log("train/tokens", seen, reduce_fx="sum")
