"""What all tasks share: the optimizer, its schedule, clipping, and what goes into a checkpoint.

A task must have `training_step`, `validation_step` and `count_tokens`. All other methods are optional.
Commands and callbacks call them; by default they raise `Unsupported`, which says what the task does not have.
"""

import logging
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_, get_total_norm
from torch.optim.lr_scheduler import ReduceLROnPlateau

from lstmlab import distributed
from lstmlab.cells import build_cell
from lstmlab.data.features import Features
from lstmlab.data.rows import Rows
from lstmlab.models.optimizers import build_optimizer
from lstmlab.models.schedules import build_schedules
from lstmlab.models.transfer import freeze, measure_heights
from lstmlab.schema import NormClippingConfig, PredictConfig, TrainConfig, ValueClippingConfig
from lstmlab.tables import markdown

# Silence Lightning's start-up banner and its advertising
logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)


class Unsupported(ValueError):
    """The task does not support what was requested. The message is one sentence that names the task."""


class Sample(NamedTuple):
    """Some output of a model, with a title that says what it is."""

    title: str
    text: str
    prompt: str  # a text that the model takes, to try it out; may be empty


class Graph(NamedTuple):
    """A function of a model, to be exported as one file.

    inputs: by name, an example and its axes, one letter each: B (rows), T and S (steps) are dynamic; any
        other axis keeps its size.
    """

    function: Callable[..., Any]
    inputs: dict[str, tuple[Tensor, str]]
    outputs: list[str]


class Task(L.LightningModule):
    """A model with its loss.

    Args:
        config: the settings of the run, or the `CheckpointConfig` of a loaded model.
        info: what the data module tells the model (vocabulary, …), in plain containers.

    Both are saved in the checkpoint, which therefore opens without any other file.
    """

    options: tuple[str, ...] = ()  # the keys of conf/predict.yaml that this task's `respond` reads
    # True for a language model, which has `compute_losses`, `sample_ids` and, of characters, `training_text`
    # and `vocabulary`
    writes_text = False
    page: str | None = None  # the part of an exported web page that shows this task, in `pages/`

    def __init__(self, config: TrainConfig, info: dict):
        super().__init__()
        self.save_hyperparameters({"config": config.to_plain(), "info": info}, logger=False)
        self.config, self.info = config, info
        self.plateau: ReduceLROnPlateau | None = None
        self.grad_norm: Tensor | None = None  # of the latest step, before clipping
        self.resumed: dict[str, Any] = {}  # from the checkpoint from which training resumes
        self.taken: list[str] = []  # the parameters that began as those of model.init_from

    def build_cell(self, input_size: int, **changes: Any) -> nn.Module:
        """The recurrent stack that the `cell` group describes, with some settings changed."""
        return build_cell(input_size=input_size, **(self.config.cell.to_plain() | changes))

    def count_tokens(self, batch: Any) -> int | Tensor:
        """The number of tokens in a training batch, for the throughput."""
        raise NotImplementedError(f"{type(self).__name__} must define count_tokens(batch)")

    def targets(self, batch: Any) -> Tensor | None:
        """The classes (integers, any shape) over which the loss of a training batch is averaged, if it is.

        Their entropy is the baseline for a loss: it is the loss of predicting the class frequencies.
        """
        return None

    def unsupported(self, what: str) -> Unsupported:
        return Unsupported(f"model={self.config.model.name} {what}")

    # --- for predict.py and the callbacks ---

    def respond(self, text: str, options: PredictConfig) -> Iterator[str]:
        """The answer to `text`, piece by piece; `options` are the keys of conf/predict.yaml."""
        raise self.unsupported("has no answer to a text")

    def answer(self, texts: list[str], options: PredictConfig) -> list[dict[str, Any]]:
        """The answers to a few texts, computed together: for each its values by name, plain ones."""
        raise self.unsupported("has no answer to a list of texts")

    def examples(self, batch: Any) -> tuple[list[str], list[list]]:
        """Column names and a few rows: the output of the model on a validation batch, beside the truth."""
        raise self.unsupported("has no examples to show")

    def draw_example(self, batch: Any) -> Any:
        """A matplotlib Figure of the model at work on a validation batch, or None."""
        return None

    def finish(self) -> Sample | None:
        """Some output of the model to show after training, if it has any."""
        trainer: Any = self.trainer
        batch = next(iter(trainer.datamodule.val_dataloader()))
        try:
            with torch.inference_mode():
                columns, rows = self.eval().examples(batch)
        except Unsupported:
            return None
        answers = type(self).respond is not Task.respond
        prompt = " ".join(str(rows[0][0]).split()[:8])[:80] if answers else ""
        return Sample("Its answers to the first validation data", markdown(columns, rows), prompt)

    # --- for analyze.py ---
    # The gates callback also calls traced_cell, embed_ids, rows_of_batch and token_texts

    def traced_cell(self) -> Any:
        """The recurrent stack that reads the input."""
        raise self.unsupported("has no cell to analyse")

    def embed_ids(self, ids: Tensor) -> Tensor:
        """Ids (B, T) → the input of `traced_cell` (B, T, I)."""
        raise self.unsupported("has no ids to embed")

    def read_text(self, text: str) -> Rows:
        """A text as rows of ids. Raises ValueError for a text that the model cannot read."""
        raise self.unsupported("does not read text")

    def run(self, rows: Rows) -> Tensor:
        """What the model computes from rows of ids, mostly logits; see `Predictor.run_with_hooks`."""
        raise self.unsupported("does not run on rows of ids")

    def compute_losses(self, rows: Rows) -> Tensor:
        """The loss of each prediction for B rows, in nats: (B, K), with NaN where there is none."""
        raise self.unsupported("has no loss on rows of ids")

    def measure_reading(self, rows: Rows) -> Tensor | None:
        """How much attention reads each unit of the encoder's output (D·H,), or None without attention."""
        return None

    def rows_of_batch(self, batch: Any) -> Rows:
        """The sequences of a training or validation batch, on the CPU."""
        raise self.unsupported("has no rows of ids in its batches")

    def validation_rows(self, datamodule: Any, count: int) -> Rows:
        """Validation data: `count` steps or slightly more, or all if there are fewer."""
        raise self.unsupported("has no validation data to analyse")

    def token_texts(self, rows: Rows) -> list[str]:
        """The text of each of the N steps. Joined, they read as one row per line."""
        raise self.unsupported("has no tokens to show")

    def text_features(self, rows: Rows, language: str | None) -> Features:
        """What a reader of the rows knows after each step. Units are ranked by how well they track it.

        language: which features of a text to compute, python or english; None: those of the training data.
        """
        return {}

    def draw_rows(self, rows: Rows) -> Any:
        """A matplotlib Figure of the model at work on the first row, or None."""
        return None

    # --- for export.py ---

    def graphs(self) -> dict[str, Graph]:
        """{file name without suffix: graph}."""
        raise self.unsupported("has no graph to export as format=onnx; use format=safetensors")

    # --- optimisation ---

    def configure_optimizers(self):
        decay, factors = self.config.model.layer_rate_decay, None
        if decay != 1:
            heights = measure_heights(self).values()
            factors = [decay ** (max(heights) - height) for height in heights]
        optimizer = build_optimizer(self.config.optimizer, self.parameters(), factors)
        scheduler, self.plateau = build_schedules(optimizer, self.config)
        if self.plateau is not None:
            self.plateau.load_state_dict(self.resumed.get("plateau", {}))
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
        """Clip as the `clipping` group says, and log the norm before clipping."""
        config = self.config.clipping
        parameters = list(self.parameters())
        if isinstance(config, NormClippingConfig):
            norm = clip_grad_norm_(parameters, config.max_norm)
        else:
            norm = get_total_norm([p.grad for p in parameters if p.grad is not None])
        if isinstance(config, ValueClippingConfig):
            clip_grad_value_(parameters, config.max_value)
        self.grad_norm = norm
        self.log_step({"train/grad_norm": norm, "train/lr": optimizer.param_groups[0]["lr"]})

    def on_fit_start(self) -> None:
        if distributed.world_size() > 1:
            # Each process draws its own dropout masks
            torch.manual_seed(self.config.seed + distributed.rank())

    def log(self, name: str, value: Any, *args: Any, **kwargs: Any) -> None:
        """Log the mean over processes, so that all of them make the same decisions after a validation."""
        if distributed.world_size() > 1:
            kwargs["sync_dist"] = True
        super().log(name, value, *args, **kwargs)

    def log_step(self, values: dict[str, Any], prog_bar: bool = False) -> None:
        """Log the values of a training step, if the step is one of those recorded.

        Lightning's `log` takes a third of a millisecond even if the values are discarded. The last step is
        always recorded, because Lightning's row for it would otherwise repeat older values.
        """
        step, trainer = self.trainer.global_step + 1, self.config.trainer
        if step % trainer.log_every_n_steps == 0 or step == trainer.max_steps:
            self.log_dict(values, prog_bar=prog_bar, batch_size=1)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if (epochs := self.config.model.unfreeze_after) is not None:
            batches, together = self.trainer.num_training_batches, self.trainer.accumulate_grad_batches
            freeze(self, self.trainer.global_step, epochs * -(-batches // together))

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.stop_when_done()

    def stop_when_done(self) -> None:
        """Stop at max_steps. The limit of Lightning itself would skip the last validation."""
        steps = self.config.trainer.max_steps
        assert steps is not None  # worked out before training
        if self.trainer.global_step >= steps:
            self.trainer.should_stop = True

    def on_validation_epoch_end(self) -> None:
        """Step the plateau scheduler at each validation; Lightning would step it once per epoch.

        A task that overrides this method calls it last, when all metrics are logged.
        """
        if self.trainer.state.fn != "fit" or self.trainer.sanity_checking:
            return
        metrics, monitor = self.trainer.callback_metrics, self.config.model.monitor
        if monitor not in metrics:
            known = ", ".join(sorted(name for name in metrics if name.startswith("val/")))
            raise ValueError(f"model.monitor={monitor} is not a metric of validation; choose one of {known}")
        if self.plateau is not None:
            self.plateau.step(metrics[monitor])

    # --- checkpoint ---

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        metrics = {name: float(value) for name, value in self.trainer.callback_metrics.items()}
        checkpoint["metrics"] = self.resumed.get("metrics", {}) | metrics
        if self.taken:
            checkpoint["taken"] = self.taken
        if self.plateau is not None:
            checkpoint["plateau"] = {
                "best": self.plateau.best,
                "num_bad_epochs": self.plateau.num_bad_epochs,
            }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.resumed = {key: checkpoint[key] for key in ("metrics", "plateau") if key in checkpoint}
        self.taken = checkpoint.get("taken", [])


def detach(state: tuple[Tensor, ...] | None):
    """The same state without its graph: this is where truncated BPTT truncates."""
    return None if state is None else type(state)(*(member.detach() for member in state))
