"""Watches a run and reports each fault once, with its likely cause and what to type."""

import copy
import math
import os
import time
from pathlib import Path
from statistics import median
from typing import Any, NoReturn

import lightning as L
import torch
from lightning.pytorch.utilities.memory import is_oom_error
from torch import Tensor
from torch.nn.utils import get_total_norm

from lstmlab.callbacks.diagnosis import (
    RECENT,
    Finding,
    Look,
    diagnose,
    explain_kept_graph,
    explain_not_finite,
    explain_out_of_memory,
    find_slow_bf16,
)
from lstmlab.cells.base import Recurrent
from lstmlab.loggers import show
from lstmlab.models.base import Task
from lstmlab.models.transfer import name_layer
from lstmlab.schema import Limits


class Doctor(L.Callback):
    """Prints findings, appends them to RUN_DIR/doctor.md and sends them to wandb and TensorBoard.

    It looks every `Limits.steps` steps, rounded up to a multiple of trainer.log_every_n_steps; `diagnosis`
    then judges what it measured. Between two looks it only keeps references to losses and batches, so that no
    step waits for the device.

    When the loss or the weights are no longer finite, it ends the run with FloatingPointError. The batch is
    then in RUN_DIR/nan_batch.pt, and the weights of the last look in checkpoints/before_nan.ckpt. No
    checkpoint is ever saved with weights that are not finite.

    Args:
        limits: the fields of `schema.Limits`, explained in conf/callbacks/default.yaml.
    """

    def __init__(self, **limits: Any):
        self.limits = Limits(**limits)
        self.found: list[str] = []  # names of the findings reported so far
        self.looks: list[Look] = []
        self.baseline: float | None = None
        self.latest: tuple[int, int, Any] = (0, 0, None)  # step, index in the epoch, batch

    def setup(self, trainer, pl_module, stage: str) -> None:
        self.report_path = Path(trainer.default_root_dir) / "doctor.md"

    # --- between two looks ---

    def on_train_start(self, trainer, pl_module) -> None:
        every = trainer.log_every_n_steps
        self.interval = every * -(-self.limits.steps // every)
        self.layers: dict[str, list] = {}
        for name, parameter in pl_module.named_parameters():
            self.layers.setdefault(name_layer(name), []).append(parameter)
        self.batch_count = 0
        self.start_interval(trainer, pl_module)

    def start_interval(self, trainer, pl_module) -> None:
        self.before = [parameter.detach().clone() for parameter in pl_module.parameters()]
        self.before_step = trainer.global_step
        self.losses: list[Tensor] = []
        self.batches: list[tuple[int, int, Any]] = []
        self.gradient_norms: list[Tensor] = []  # of the whole gradient, at each step
        self.layer_norms: dict[str, Tensor] = {}  # of each layer, at the last step
        self.waited, self.started_at = 0.0, time.perf_counter()
        self.batch_ended_at = self.started_at

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        self.waited += time.perf_counter() - self.batch_ended_at
        self.latest = (trainer.global_step + 1, batch_idx, batch)
        self.batch_count += 1
        self.first_node = torch.autograd._get_sequence_nr()

    def on_before_backward(self, trainer, pl_module, loss) -> None:
        # A kept graph shows at the second batch, and a check at each step would be slow
        if self.batch_count == 2:
            older, total = count_older_nodes(loss, self.first_node)
            if older > 0:
                self.report(trainer, pl_module, explain_kept_graph(older, total))

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        if (trainer.global_step + 1) % self.interval == 0:
            for name, parameters in self.layers.items():
                if gradients := [p.grad for p in parameters if p.grad is not None]:
                    self.layer_norms[name] = get_total_norm(gradients)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.losses.append(outputs["loss"] * trainer.accumulate_grad_batches)
        self.batches.append(self.latest)
        if trainer.global_step == self.latest[0]:
            self.gradient_norms.append(pl_module.grad_norm)
        if self.layer_norms:
            self.take_look(trainer, pl_module)
        self.batch_ended_at = time.perf_counter()

    def on_validation_start(self, trainer, pl_module) -> None:
        self.paused_at = time.perf_counter()
        if trainer.state.fn == "fit" and self.losses:
            losses = trainer.strategy.reduce(torch.stack(self.losses))
            self.require_finite(trainer, pl_module, losses.tolist())

    def on_validation_end(self, trainer, pl_module) -> None:
        if trainer.state.fn != "fit":
            return
        for name, value in trainer.callback_metrics.items():
            if name.startswith("val/loss") and not math.isfinite(value):
                self.end_run(trainer, pl_module, f"{name} is {value:g}", self.latest)
        self.batch_ended_at = time.perf_counter()
        self.started_at += self.batch_ended_at - self.paused_at

    # --- a look ---

    @torch.no_grad()
    def take_look(self, trainer, pl_module) -> None:
        """Fetch the measurements from the device, all at once, and report what they show."""
        moved = get_total_norm([p - q for p, q in zip(pl_module.parameters(), self.before, strict=True)])
        moved /= get_total_norm(self.before)
        # In half precision, a step with an infinite gradient is only skipped
        peak = torch.stack(self.gradient_norms).nan_to_num(0, 0).max()
        numbers = torch.stack([*self.losses, moved, peak, *self.layer_norms.values()])
        numbers = trainer.strategy.reduce(numbers).tolist()  # the same in all processes

        count = len(self.losses)
        losses, (share, highest, *norms) = numbers[:count], numbers[count:]
        self.require_finite(trainer, pl_module, [*losses, share])
        if self.baseline is None:
            self.baseline = compute_class_entropy([pl_module.targets(batch) for _, _, batch in self.batches])

        gradients = dict(zip(self.layer_norms, norms, strict=True))
        waiting = self.waited / (time.perf_counter() - self.started_at)
        self.looks.append(Look(trainer.global_step, sum(losses) / count, share, highest, gradients, waiting))
        baseline = self.baseline or self.looks[0].loss
        findings = diagnose(self.looks, baseline, pl_module.config, self.limits)
        if len(self.looks) == 1 and trainer.precision == "bf16-mixed" and pl_module.device.type == "cpu":
            findings += filter(None, [find_slow_bf16(*time_precisions(pl_module))])
        for finding in findings:
            self.report(trainer, pl_module, finding)
        self.start_interval(trainer, pl_module)

    def require_finite(self, trainer, pl_module, numbers: list[float]) -> None:
        """End the run unless all numbers are finite: the losses since the last look and, if there is one
        more, how far the weights moved."""
        for index, number in enumerate(numbers):
            if not math.isfinite(number):
                is_loss = index < len(self.batches)
                what = f"the loss is {number:g}" if is_loss else "the weights are not finite"
                self.end_run(trainer, pl_module, what, self.batches[index if is_loss else -1])

    def on_save_checkpoint(self, trainer, pl_module, checkpoint) -> None:
        if not all(bool(parameter.isfinite().all()) for parameter in pl_module.parameters()):
            self.end_run(trainer, pl_module, "the weights are not finite", self.latest)

    def end_run(self, trainer, pl_module, what: str, where: tuple[int, int, Any]) -> NoReturn:
        """Save the batch and the weights of the last look, report, and raise FloatingPointError."""
        step, index, batch = where
        folder = Path(trainer.default_root_dir)
        saved, before = folder / "nan_batch.pt", folder / "checkpoints/before_nan.ckpt"
        if trainer.is_global_zero:
            torch.save(batch._asdict() if hasattr(batch, "_asdict") else batch, saved)
        with torch.no_grad():
            for parameter, good in zip(pl_module.parameters(), self.before, strict=True):
                parameter.copy_(good)
        trainer.save_checkpoint(before, weights_only=True)
        finding = explain_not_finite(f"{what} at step {step}", self.looks, pl_module.config)
        self.report(trainer, pl_module, finding)
        raise FloatingPointError(
            f"{what} at step {step}, batch {index} of epoch {trainer.current_epoch} (saved in {saved}); "
            f"the weights of step {self.before_step} are in {before}"
        )

    def on_train_end(self, trainer, pl_module) -> None:
        step, warmup = trainer.global_step, pl_module.config.scheduler.warmup_steps
        needed = warmup + max(self.limits.patience, 2 * RECENT * self.interval)
        if not self.found and step < needed and trainer.is_global_zero:
            pl_module.print(f"Doctor: {step:,} steps are too few to judge the loss; {needed:,} would do")

    def on_exception(self, trainer, pl_module, exception) -> None:
        if isinstance(exception, MemoryError) or is_oom_error(exception):
            self.report(trainer, pl_module, explain_out_of_memory(exception, pl_module.config))

    def report(self, trainer, pl_module, finding: Finding) -> None:
        if finding.name in self.found:
            return
        self.found.append(finding.name)
        if not trainer.is_global_zero:
            return
        step = trainer.global_step
        text = (
            f"## Step {step}: {finding.name}\n\n- Seen: {finding.evidence}\n- Likely: {finding.cause}\n"
            f"- Try: {', or '.join(f'`{override}`' for override in finding.advice)}\n\n"
        )
        pl_module.print(f"\nDoctor, step {step}: {text.removeprefix(f'## Step {step}: ').rstrip()}")
        with self.report_path.open("a", encoding="utf-8") as file:
            file.write(text)
        show(trainer, "doctor", text=text)

    def state_dict(self) -> dict[str, Any]:
        size = self.report_path.stat().st_size if self.report_path.exists() else 0
        looks = [list(look) for look in self.looks]
        return {"found": self.found, "looks": looks, "baseline": self.baseline, "bytes": size}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.found, self.baseline = state_dict["found"], state_dict["baseline"]
        self.looks = [Look(*values) for values in state_dict["looks"]]
        # What was found after that checkpoint will be found again
        if self.report_path.exists():
            os.truncate(self.report_path, state_dict["bytes"])


def time_precisions(model: Task) -> tuple[float, float]:
    """Seconds for a forward and backward pass of the cells, in bf16 and in float32: medians of three.

    It runs copies of the cells on noise, and changes neither the model nor the random states.
    """
    cells = [copy.deepcopy(module) for module in model.modules() if isinstance(module, Recurrent)]
    B, T = model.config.data.batch_size, getattr(model.config.data, "sequence_length", 64)
    seconds: dict[bool, list[float]] = {True: [], False: []}
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        inputs = [torch.randn(B, T, cell.input_size) for cell in cells]
        for _ in range(4):  # the first one warms up
            for bf16, taken in seconds.items():
                start = time.perf_counter()
                for cell, x in zip(cells, inputs, strict=True):
                    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                        output, _ = cell(x)
                    output.sum().backward()
                taken.append(time.perf_counter() - start)
    return median(seconds[True][1:]), median(seconds[False][1:])


def count_older_nodes(loss: Tensor, first: int) -> tuple[int, int]:
    """How many nodes in the graph of `loss` are older than node number `first`, and how many there are."""
    queue, seen = [loss.grad_fn], set()
    while queue:
        node = queue.pop()
        if node is not None and node not in seen:
            seen.add(node)
            queue += [following for following, _ in node.next_functions]
    return sum(node._sequence_nr() < first for node in seen), len(seen)


def compute_class_entropy(targets: list[Tensor | None]) -> float | None:
    """The entropy of the target classes in nats: the loss of predicting their frequencies."""
    known = [classes.flatten() for classes in targets if classes is not None]
    if not known:
        return None
    counts = torch.cat(known).bincount()
    return torch.distributions.Categorical(counts / counts.sum()).entropy().item()
