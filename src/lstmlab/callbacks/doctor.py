"""Look at a run as an experienced colleague would, and say once of each fault what it is and what to type."""

import math
import os
import re
import time
from pathlib import Path
from typing import Any, NoReturn

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities.memory import is_oom_error
from torch import Tensor
from torch.nn.utils import get_total_norm

from lstmlab.callbacks.diagnosis import Finding, Limits, Look, diagnose, graph_kept, not_finite, out_of_memory


class Doctor(L.Callback):
    """Print findings, append them to RUN_DIR/doctor.md, send them to TensorBoard and wandb; see `diagnosis`.

    It looks every trainer.log_every_n_steps steps, or at the first multiple of that which is at least
    `Limits.steps`. In between it keeps references to losses and batches alone: no device is waited for.

    Where loss or weights are no longer finite, the run ends in FloatingPointError. The batch is then in
    RUN_DIR/nan_batch.pt, the weights of the look before in checkpoints/before_nan.ckpt. Of weights that are
    not finite no checkpoint is written, whoever asks for one.
    """

    def __init__(self, **limits: Any):
        self.limits = Limits(**limits)
        self.found: list[str] = []
        self.looks: list[Look] = []
        self.baseline: float | None = None
        self.latest: tuple[int, int, Any] = (0, 0, None)  # step, index in the epoch, the batch itself

    def setup(self, trainer, pl_module, stage: str) -> None:
        self.report = Path(trainer.default_root_dir) / "doctor.md"

    # --- a stretch of steps ---

    def on_train_start(self, trainer, pl_module) -> None:
        every = trainer.log_every_n_steps
        self.interval = every * -(-self.limits.steps // every)
        self.layers: dict[str, list] = {}
        for name, parameter in pl_module.named_parameters():
            self.layers.setdefault(layer(name), []).append(parameter)
        self.seen = 0
        self.begin(trainer, pl_module)

    def begin(self, trainer, pl_module) -> None:
        self.before = [parameter.detach().clone() for parameter in pl_module.parameters()]
        self.before_step = trainer.global_step
        self.losses: list[Tensor] = []
        self.batches: list[tuple[int, int, Any]] = []
        self.steps_norms: list[Tensor] = []  # of the whole gradient
        self.norms: dict[str, Tensor] = {}  # of each layer's, at the last step
        self.waited, self.begun = 0.0, time.perf_counter()
        self.ended = self.begun

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        self.waited += time.perf_counter() - self.ended
        self.latest, self.seen = (trainer.global_step + 1, batch_idx, batch), self.seen + 1
        self.first_node = torch.autograd._get_sequence_nr()

    def on_before_backward(self, trainer, pl_module, loss) -> None:
        if self.seen == 2:  # a graph that is kept shows at once, and this is too slow to do at each step
            older, total = older_nodes(loss, self.first_node)
            if older > 0:
                self.say(trainer, pl_module, graph_kept(older, total))

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        if (trainer.global_step + 1) % self.interval == 0:
            for name, parameters in self.layers.items():
                if gradients := [p.grad for p in parameters if p.grad is not None]:
                    self.norms[name] = get_total_norm(gradients)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.losses.append(outputs["loss"] * trainer.accumulate_grad_batches)
        self.batches.append(self.latest)
        if trainer.global_step == self.latest[0]:
            self.steps_norms.append(pl_module.grad_norm)
        if self.norms:
            self.look(trainer, pl_module)
        self.ended = time.perf_counter()

    def on_validation_start(self, trainer, pl_module) -> None:
        self.paused = time.perf_counter()
        if trainer.state.fn == "fit" and self.losses:
            losses = trainer.strategy.reduce(torch.stack(self.losses))
            self.require_finite(trainer, pl_module, losses.tolist())

    def on_validation_end(self, trainer, pl_module) -> None:
        if trainer.state.fn != "fit":
            return
        for name, value in trainer.callback_metrics.items():
            if name.startswith("val/loss") and not math.isfinite(value):
                self.stop(trainer, pl_module, f"{name} is {value:g}", self.latest)
        self.ended = time.perf_counter()
        self.begun += self.ended - self.paused

    # --- what it shows ---

    @torch.no_grad()
    def look(self, trainer, pl_module) -> None:
        """Fetch what the stretch left on the device, at once, and say what it shows."""
        moved = get_total_norm([p - q for p, q in zip(pl_module.parameters(), self.before, strict=True)])
        moved /= get_total_norm(self.before)
        peak = torch.stack(self.steps_norms).nan_to_num(0, 0).max()  # in half precision inf is only skipped
        numbers = torch.stack([*self.losses, moved, peak, *self.norms.values()])
        numbers = trainer.strategy.reduce(numbers).tolist()  # the same in all processes
        count = len(self.losses)
        losses, (share, highest, *norms) = numbers[:count], numbers[count:]
        self.require_finite(trainer, pl_module, [*losses, share])
        if self.baseline is None:
            self.baseline = frequencies_alone([pl_module.targets(batch) for _, _, batch in self.batches])
        gradients = dict(zip(self.norms, norms, strict=True))
        waiting = self.waited / (time.perf_counter() - self.begun)
        self.looks.append(Look(trainer.global_step, sum(losses) / count, share, highest, gradients, waiting))
        baseline = self.baseline or self.looks[0].loss
        for finding in diagnose(self.looks, baseline, pl_module.config, self.limits):
            self.say(trainer, pl_module, finding)
        self.begin(trainer, pl_module)

    def require_finite(self, trainer, pl_module, numbers: list[float]) -> None:
        """`numbers`: the losses of the stretch, and perhaps one more, of the weights after its last step."""
        for index, number in enumerate(numbers):
            if not math.isfinite(number):
                where = self.batches[min(index, len(self.batches) - 1)]
                loss = index < len(self.batches)
                what = f"the loss is {number:g}" if loss else "the weights are not finite"
                self.stop(trainer, pl_module, what, where)

    def on_save_checkpoint(self, trainer, pl_module, checkpoint) -> None:
        if not all(bool(parameter.isfinite().all()) for parameter in pl_module.parameters()):
            self.stop(trainer, pl_module, "the weights are not finite", self.latest)

    def stop(self, trainer, pl_module, what: str, where: tuple[int, int, Any]) -> NoReturn:
        step, index, batch = where
        folder = Path(trainer.default_root_dir)
        saved, before = folder / "nan_batch.pt", folder / "checkpoints/before_nan.ckpt"
        if trainer.is_global_zero:
            torch.save(batch._asdict() if hasattr(batch, "_asdict") else batch, saved)
        with torch.no_grad():
            for parameter, good in zip(pl_module.parameters(), self.before, strict=True):
                parameter.copy_(good)
        trainer.save_checkpoint(before, weights_only=True)
        self.say(trainer, pl_module, not_finite(f"{what} at step {step}", self.looks, pl_module.config))
        raise FloatingPointError(
            f"{what} at step {step}, batch {index} of epoch {trainer.current_epoch} (saved in {saved}); "
            f"the weights of step {self.before_step} are in {before}"
        )

    def on_exception(self, trainer, pl_module, exception) -> None:
        if isinstance(exception, MemoryError) or is_oom_error(exception):
            self.say(trainer, pl_module, out_of_memory(exception, pl_module.config))

    def say(self, trainer, pl_module, finding: Finding) -> None:
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
        with self.report.open("a", encoding="utf-8") as file:
            file.write(text)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_text("doctor", ["step", "finding"], [[step, text]])
            elif isinstance(logger, TensorBoardLogger):
                logger.experiment.add_text("doctor", text, step)

    def state_dict(self) -> dict[str, Any]:
        size = self.report.stat().st_size if self.report.exists() else 0
        looks = [list(look) for look in self.looks]
        return {"found": self.found, "looks": looks, "baseline": self.baseline, "bytes": size}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.found, self.baseline = state_dict["found"], state_dict["baseline"]
        self.looks = [Look(*values) for values in state_dict["looks"]]
        if self.report.exists():  # what was found after that checkpoint will be found once more
            os.truncate(self.report, state_dict["bytes"])


def layer(name: str) -> str:
    """The layer that a parameter belongs to: of a stack, also its number and direction."""
    module, _, parameter = name.rpartition(".")
    of_stack = re.search(r"_l(\d+)(_reverse)?$", parameter)
    return module + (f" layer {of_stack[1]}{' backwards' if of_stack[2] else ''}" if of_stack else "")


def older_nodes(loss: Tensor, first: int) -> tuple[int, int]:
    """How many nodes of the graph behind `loss` were made before number `first`, and how many there are."""
    waiting, seen = [loss.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [following for following, _ in node.next_functions]
    return sum(node._sequence_nr() < first for node in seen), len(seen)


def frequencies_alone(targets: list[Tensor | None]) -> float | None:
    """The entropy of the classes asked for, in nats: the loss if their frequencies are all that one knows."""
    known = [classes.flatten() for classes in targets if classes is not None]
    if not known:
        return None
    counts = torch.cat(known).bincount()
    return torch.distributions.Categorical(counts / counts.sum()).entropy().item()
