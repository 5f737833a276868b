"""Learning rate schedules: by step, or when validation no longer improves."""

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LinearLR, LRScheduler, ReduceLROnPlateau

from lstmlab.schema import CosineConfig, OwnSchedulerConfig, PlateauConfig, TrainConfig


def build_schedules(
    optimizer: Optimizer, config: TrainConfig
) -> tuple[LRScheduler, ReduceLROnPlateau | None]:
    """The scheduler to step after each optimizer step, and the one to step after each validation, if any."""
    settings, steps = config.scheduler, config.trainer.max_steps
    if isinstance(settings, OwnSchedulerConfig):
        return settings.build("scheduler", LRScheduler, optimizer), None
    warmup = settings.warmup_steps
    if isinstance(settings, PlateauConfig):
        # PyTorch lowers the rate only after more bad validations than its patience
        patience = settings.patience - 1
        mode = config.model.monitor_mode
        plateau = ReduceLROnPlateau(optimizer, mode, factor=settings.factor, patience=patience)
        # LinearLR multiplies the current rate, so both can act on one optimizer
        return LinearLR(optimizer, 1 / (warmup + 1), total_iters=warmup), plateau
    assert steps is not None  # worked out before training
    final = settings.final_lr if isinstance(settings, CosineConfig) else 1.0
    return LambdaLR(optimizer, lambda step: compute_lr_factor(step, warmup, steps, final)), None


def compute_lr_factor(step: int, warmup: int, steps: int, final: float) -> float:
    """The factor of the learning rate at a step: a linear warm-up over `warmup` steps, then half a cosine
    from 1 to `final` at the last of `steps`."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    cosine = (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, steps - warmup)))) / 2
    return final + (1 - final) * cosine
