"""Turn measurements of a run into findings with advice: pure functions of numbers."""

from itertools import pairwise
from statistics import fmean
from typing import NamedTuple

from lstmlab.schema import Limits, NormClippingConfig, TrainConfig

RECENT = 5  # the number of latest looks that describe the present


class Look(NamedTuple):
    """Measurements over an interval of at least `Limits.steps` optimizer steps."""

    step: int  # the last step
    loss: float  # the mean loss
    moved: float  # ‖W − W before‖ / ‖W before‖ of all weights
    peak: float  # the largest norm of the whole gradient before clipping
    gradients: dict[str, float]  # the norm by layer at the last step
    waiting: float  # the share of the time spent waiting for batches


class Finding(NamedTuple):
    """A fault. name: its name, under which it is reported once; advice: overrides to try, the best first."""

    name: str
    evidence: str
    cause: str
    advice: list[str]


def find_flat_loss(looks: list[Look], baseline: float, config: TrainConfig, limits: Limits) -> Finding | None:
    """The loss has been flat from the start, and the weights have hardly moved."""
    first, now = looks[0].loss, fmean(look.loss for look in looks[-RECENT:])
    moved = sum(look.moved for look in looks)
    # Whether the looks begin at the start of the run and not where it was resumed
    complete = looks[0].step <= limits.patience
    if not complete or now < first * (1 - limits.flat) or moved > limits.still:
        return None
    return Finding(
        "flat loss",
        f"the loss was {first:.4g} at step {looks[0].step} and is {now:.4g}; in total the weights moved by "
        f"{moved:.2%} of their norm",
        f"the learning rate, optimizer.lr={config.optimizer.lr:g}, is too low",
        [suggest_learning_rate(config, 30)],
    )


def find_oscillating_loss(
    looks: list[Look], baseline: float, config: TrainConfig, limits: Limits
) -> Finding | None:
    """The loss goes up and down; or it does not fall while the weights move far at each look, or did at one
    look before the network died."""
    losses = [look.loss for look in looks[-2 * RECENT :]]
    rises = sum(b - a > limits.rough * baseline for a, b in pairwise(losses))
    before, now = fmean(losses[:RECENT]), fmean(losses[RECENT:])
    rough = rises >= 3 and now >= before

    strides = [look.moved for look in looks]
    stride = max(strides) if now > 0.98 * baseline else fmean(strides[-RECENT:])
    # Large strides are fine as long as the loss falls
    too_far = stride >= limits.stride and now > 0.9 * before
    if not too_far and not rough:
        return None
    steps = looks[-1].step - looks[-2].step
    return Finding(
        "oscillating loss",
        f"over the last {len(losses)} looks the loss varied between {min(losses):.4g} and {max(losses):.4g}; "
        f"{steps} steps moved the weights by {stride:.0%} of their norm",
        f"the learning rate, optimizer.lr={config.optimizer.lr:g}, is too high",
        [suggest_learning_rate(config, 0.1), "scheduler.warmup_steps=200"],
    )


def find_early_plateau(
    looks: list[Look], baseline: float, config: TrainConfig, limits: Limits
) -> Finding | None:
    """The loss is still high but no longer falls, or hardly falls in a stack much smaller than the
    recommended one.

    A loss at the baseline does not count: in the copy task it stays there before it falls.
    """
    quarter, half = len(looks) // 4, len(looks) // 2
    before = fmean(look.loss for look in looks[quarter:half])
    now = fmean(look.loss for look in looks[half:])
    size, recommended = config.cell.hidden_size, config.model.recommends.hidden_size
    layers = config.cell.num_layers
    small = 8 * size <= recommended
    gain = limits.gain * (5 if small else 1)
    low, high = (limits.plateau * 2 / 3, float("inf")) if small else (limits.plateau, 0.9)
    if not low < now / baseline < high or now < before * (1 - gain):
        return None
    return Finding(
        "early plateau",
        f"from step {looks[half].step} to {looks[-1].step} the mean loss was {now:.4g}, "
        f"{1 - now / before:.1%} lower than from step {looks[quarter].step} to {looks[half - 1].step}; "
        f"predicting the class frequencies gives {baseline:.4g}",
        f"cell.hidden_size={size} with cell.num_layers={layers} is too small for this data",
        [f"cell.hidden_size={max(recommended, 2 * size)}", f"cell.num_layers={layers + 1}"],
    )


def find_vanishing_gradient(
    looks: list[Look], baseline: float, config: TrainConfig, limits: Limits
) -> Finding | None:
    """A layer gets almost no gradient at three looks in a row, although the loss is still high."""
    recent = looks[-3:]
    last = recent[-1].gradients
    names = [n for n in last if all(look.gradients.get(n, 1.0) < limits.vanishing for look in recent)]
    if not names or len(recent) < 3 or recent[-1].loss < 0.1 * baseline:
        return None
    cell = config.cell
    advice = [f"cell.num_layers={cell.num_layers // 2}"] if cell.num_layers > 2 else []
    if cell.kind == "rnn":
        advice.append("cell.kind=lstm")
    if cell.init == "torch":
        advice.append("cell.init=xavier")
    return Finding(
        "vanishing gradient",
        f"at three looks in a row the gradient norm was below {limits.vanishing:g} in "
        + ", ".join(f"{name} ({last[name]:.1g})" for name in names),
        "the gradient vanishes on its way back (too many layers, or saturated units)",
        [*advice, suggest_learning_rate(config, 0.3)],
    )


def find_exploding_gradient(
    looks: list[Look], baseline: float, config: TrainConfig, limits: Limits
) -> Finding | None:
    """The gradient is huge before clipping."""
    look = looks[-1]
    largest = max(look.gradients, key=look.gradients.__getitem__)
    if max(look.peak, look.gradients[largest]) < limits.exploding:
        return None
    steps = look.step - looks[-2].step if len(looks) > 1 else look.step
    return Finding(
        "exploding gradient",
        f"within {steps} steps the gradient norm before clipping reached {look.peak:.2g}; at the last step "
        f"it was largest in {largest} ({look.gradients[largest]:.2g})",
        f"the recurrence amplifies the gradient on its way back (clipping={config.clipping.name}, "
        f"optimizer.lr={config.optimizer.lr:g})",
        [
            suggest_clipping(config),
            suggest_learning_rate(config, 0.1),
            *(["cell.kind=lstm"] if config.cell.kind == "rnn" else []),
        ],
    )


def find_slow_input(
    looks: list[Look], baseline: float, config: TrainConfig, limits: Limits
) -> Finding | None:
    """At three looks in a row, training waited for batches."""
    if len(looks) < 3 or min(look.waiting for look in looks[-3:]) < limits.waiting:
        return None
    workers = getattr(config.data, "num_workers", None)
    return Finding(
        "slow input",
        f"{looks[-1].waiting:.0%} of the time was spent waiting for batches",
        "it takes longer to load a batch than to train on it",
        ["data.path=… on a faster disk"] if workers is None else [f"data.num_workers={workers + 2}"],
    )


ABOUT_THE_LOSS = (find_flat_loss, find_oscillating_loss)
AT_EACH_LOOK = (find_vanishing_gradient, find_exploding_gradient, find_slow_input)


def diagnose(looks: list[Look], baseline: float, config: TrainConfig, limits: Limits) -> list[Finding]:
    """All faults that the looks show, including those already reported.

    baseline: the loss of predicting the class frequencies.
    """
    rules = list(AT_EACH_LOOK)
    trained = looks[-1].step - config.scheduler.warmup_steps
    if trained >= limits.patience and len(looks) >= 2 * RECENT:
        rules += ABOUT_THE_LOSS
        if trained >= 3 * limits.patience:
            rules.append(find_early_plateau)
    findings = (rule(looks, baseline, config, limits) for rule in rules)
    return [finding for finding in findings if finding]


def explain_not_finite(what: str, looks: list[Look], config: TrainConfig) -> Finding:
    """what: the value that is not finite, and the step."""
    curve = ", ".join(f"{look.loss:.4g} at step {look.step}" for look in looks[-3:])
    return Finding(
        "not finite",
        f"{what}; before that the loss was {curve}" if curve else f"{what}, before the first look",
        f"training diverged (clipping={config.clipping.name}, "
        f"optimizer.lr={config.optimizer.lr:g}, precision={config.precision.name})",
        [f"{suggest_clipping(config)} {suggest_learning_rate(config, 0.1)}"]
        + ([] if config.precision.name == "32-true" else ["precision=fp32"]),
    )


def explain_out_of_memory(error: BaseException, config: TrainConfig) -> Finding:
    data, cell, trainer = config.data.to_plain(), config.cell, config.trainer
    size, parts = data["batch_size"], trainer.accumulate_grad_batches
    sizes = ("batch_size", "sequence_length", "max_length", "delay")
    shape = ", ".join(f"data.{key}={data[key]}" for key in sizes if key in data)

    advice = []
    if cell.backend == "scratch":
        # It keeps every gate of every step for the backward pass
        advice.append("cell=fused")
    if size > 1:
        advice.append(f"data.batch_size={size // 2} trainer.accumulate_grad_batches={2 * parts}")
    advice += [
        f"data.{key}={data[key] // 2}" for key in ("sequence_length", "max_length") if data.get(key, 0) > 1
    ]
    advice.append(f"cell.hidden_size={max(1, cell.hidden_size // 2)}")
    if trainer.accelerator == "gpu" and config.precision.name == "32-true":
        advice.append("precision=bf16")
    return Finding(
        "out of memory",
        f"{(str(error) or 'MemoryError').splitlines()[0]}; {shape}, "
        f"cell.hidden_size={cell.hidden_size}, cell.num_layers={cell.num_layers}",
        "the backward pass keeps several numbers for each row, step, unit and layer, more than fit in memory",
        advice,
    )


def find_slow_bf16(bf16: float, float32: float) -> Finding | None:
    """bf16, float32: seconds of the cells for the same batch in each precision."""
    if bf16 <= 1.1 * float32:
        return None
    return Finding(
        "slow bf16",
        f"a batch took the cells {1e3 * bf16:.3g} ms in bf16 and {1e3 * float32:.3g} ms in float32",
        "this CPU is no faster in bf16, and each step converts the weights",
        ["precision=fp32"],
    )


def explain_kept_graph(older: int, total: int) -> Finding:
    return Finding(
        "state not detached",
        f"of the {total} nodes in the graph of the second batch's loss, {older} belong to the first batch: "
        "the graph and its memory grow with each step",
        "a state is carried from batch to batch together with its graph",
        ["self.train_state = detach(state) in training_step (lstmlab.models.base.detach)"],
    )


def suggest_learning_rate(config: TrainConfig, factor: float) -> str:
    """Multiply the learning rate by `factor`, or take the recommended rate if it is in that direction."""
    lr, recommended = config.optimizer.lr, config.model.recommends.lr
    # Tasks recommend a rate for Adam and AdamW
    adaptive = "Adam" in config.optimizer.target
    suitable = adaptive and (recommended > lr if factor > 1 else recommended < lr / 2)
    return f"optimizer.lr={recommended if suitable else min(lr * factor, 1):.2g}"


def suggest_clipping(config: TrainConfig) -> str:
    """The override that clips, or clips harder."""
    if isinstance(config.clipping, NormClippingConfig):
        return f"clipping.max_norm={config.clipping.max_norm / 4:g}"
    return "clipping=norm clipping.max_norm=1"
