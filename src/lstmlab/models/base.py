"""What all tasks share: optimizer, scheduler, clipping, and what goes into a checkpoint."""

import math
from collections.abc import Iterator
from typing import Any

import lightning as L
import torch
from hydra.utils import instantiate
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_, get_total_norm
from torch.optim.lr_scheduler import LambdaLR, LinearLR, ReduceLROnPlateau

from lstmlab import distributed
from lstmlab.cells import build_cell
from lstmlab.tables import markdown


class Task(L.LightningModule):
    """A model with its loss.

    Args:
        config: the whole resolved configuration, plain containers.
        info: what the data module tells the model (vocabulary …), plain containers.

    Both are saved in the checkpoint, so that it opens without any other file.
    """

    options: tuple[str, ...] = ()  # the keys of conf/predict.yaml that this task's `respond` reads

    def __init__(self, config: dict, info: dict):
        super().__init__()
        self.save_hyperparameters(logger=False)
        self.config, self.info = config, info
        self.plateau: ReduceLROnPlateau | None = None
        self.grad_norm: Tensor | None = None  # of the latest step, before clipping
        self.resumed: dict[str, Any] = {}  # the checkpoint that training goes on from

    def build_cell(self, input_size: int, **changes: Any) -> nn.Module:
        """The recurrent stack that the `cell` group describes, some of its settings changed."""
        return build_cell(input_size=input_size, **(self.config["cell"] | changes))

    def count_tokens(self, batch: Any) -> int | Tensor:
        """How many tokens a training batch holds; what the throughput counts."""
        raise NotImplementedError

    def targets(self, batch: Any) -> Tensor | None:
        """The classes (integers, any shape) over which a training batch's loss is the mean, if it is one.

        Their entropy is the baseline to judge a loss by: what knowing their frequencies alone gives.
        """
        return None

    def respond(self, text: str, options: dict) -> Iterator[str]:
        """The answer to `text`, piece by piece; `options` are the keys of conf/predict.yaml."""
        raise NotImplementedError

    def examples(self, batch: Any) -> tuple[list[str], list[list]]:
        """Column names and a few rows: what the model makes of a validation batch, beside the truth."""
        raise NotImplementedError

    def picture(self, batch: Any) -> Any:
        """A matplotlib Figure of the model at work on a validation batch, or None."""
        return None

    def finish(self) -> str:
        """What to print when training is over: a look at what the model does."""
        trainer: Any = self.trainer
        batch = next(iter(trainer.datamodule.val_dataloader()))
        with torch.inference_mode():
            return markdown(*self.eval().examples(batch))

    # --- optimisation ---

    def configure_optimizers(self):
        config = self.config["scheduler"]
        matrices = [p for p in self.parameters() if p.ndim > 1]
        vectors = [p for p in self.parameters() if p.ndim <= 1]  # biases and gains
        groups = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
        optimizer = instantiate(self.config["optimizer"], groups, _convert_="all")
        warmup = config["warmup_steps"]
        if config["name"] == "plateau":
            mode = self.config["model"]["monitor_mode"]
            self.plateau = ReduceLROnPlateau(
                optimizer, mode, factor=config["factor"], patience=config["patience"] - 1
            )
            self.plateau.load_state_dict(self.resumed.get("plateau", {}))
            # LinearLR multiplies what it finds, so that both can act on one optimizer
            scheduler: Any = LinearLR(optimizer, 1 / (warmup + 1), total_iters=warmup)
        else:
            final = config.get("final_lr", 1.0)
            decay = max(1, self.config["trainer"]["max_steps"] - warmup)

            def share(step: int) -> float:
                if step < warmup:
                    return (step + 1) / (warmup + 1)
                cosine = (1 + math.cos(math.pi * min(1.0, (step - warmup) / decay))) / 2
                return final + (1 - final) * cosine

            scheduler = LambdaLR(optimizer, share)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
        """Clip as the `clipping` group says, and log the norm before it, computed once."""
        config = self.config["clipping"]
        parameters = list(self.parameters())
        if config["name"] == "norm":
            norm = clip_grad_norm_(parameters, config["max_norm"])
        else:
            norm = get_total_norm([p.grad for p in parameters if p.grad is not None])
        if config["name"] == "value":
            clip_grad_value_(parameters, config["max_value"])
        self.grad_norm = norm
        self.log_step({"train/grad_norm": norm, "train/lr": optimizer.param_groups[0]["lr"]})

    def on_fit_start(self) -> None:
        if distributed.world_size() > 1:  # other dropout masks in each
            torch.manual_seed(self.config["seed"] + distributed.rank())

    def log(self, name: str, value: Any, *args: Any, **kwargs: Any) -> None:
        """Log the mean over processes: all must decide alike on what they validate."""
        if distributed.world_size() > 1:
            kwargs["sync_dist"] = True
        super().log(name, value, *args, **kwargs)

    def log_step(self, values: dict[str, Any], prog_bar: bool = False) -> None:
        """Log a training step's values, at the steps that are recorded: Lightning's `log` costs a third of
        a millisecond also where what it logs is thrown away. The last step is one: Lightning writes a row
        for it anyhow, which else would repeat what was logged before."""
        step, trainer = self.trainer.global_step + 1, self.config["trainer"]
        if step % trainer["log_every_n_steps"] == 0 or step == trainer["max_steps"]:
            self.log_dict(values, prog_bar=prog_bar, batch_size=1)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """End in good order: at max_steps Lightning would stop without a last validation."""
        if self.trainer.global_step >= self.config["trainer"]["max_steps"]:
            self.trainer.should_stop = True

    def on_validation_epoch_end(self) -> None:
        """Let the plateau scheduler see each validation; Lightning would show it one an epoch."""
        if self.plateau is not None and self.trainer.state.fn == "fit" and not self.trainer.sanity_checking:
            self.plateau.step(self.trainer.callback_metrics[self.config["model"]["monitor"]])

    # --- checkpoint ---

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        metrics = {name: float(value) for name, value in self.trainer.callback_metrics.items()}
        checkpoint["metrics"] = self.resumed.get("metrics", {}) | metrics
        if self.plateau is not None:
            checkpoint["plateau"] = {
                "best": self.plateau.best,
                "num_bad_epochs": self.plateau.num_bad_epochs,
            }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.resumed = {key: checkpoint[key] for key in ("metrics", "plateau") if key in checkpoint}


def detach(state: tuple[Tensor, ...] | None):
    """The same state, cut off from the graph that made it: where truncated BPTT truncates."""
    return None if state is None else type(state)(*(member.detach() for member in state))
