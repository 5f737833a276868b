"""From what was measured in a run to what an experienced colleague would say: pure functions of numbers."""

from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
from typing import NamedTuple

RECENT = 5  # looks that count as now


@dataclass(frozen=True)
class Limits:
    """Where a rule speaks. The defaults stand, with their reasons, in conf/callbacks/default.yaml.

    steps: the fewest optimizer steps whose losses make one look.
    patience: steps after the warm-up before a rule about the loss speaks, thrice that for a plateau.
    flat, still: the loss fell by less than share `flat` since the start, and the weights' way is shorter than
        share `still` of their length: the learning rate is too low.
    stride, rough: in one look the weights go further than share `stride` of their length, or the loss keeps
        rising by more than `rough` times the baseline: too high.
    gain, plateau: while the steps doubled the loss fell by less than share `gain`, and it is still above
        `plateau` times the baseline; in a stack far smaller than the task's own, five times `gain` and two
        thirds of `plateau`.
    vanishing, exploding: norm of a layer's gradient, before clipping.
    waiting: share of the time that goes into waiting for batches.
    """

    steps: int
    patience: int
    flat: float
    still: float
    stride: float
    rough: float
    gain: float
    plateau: float
    vanishing: float
    exploding: float
    waiting: float


class Look(NamedTuple):
    """What `Limits.steps` or more optimizer steps gave."""

    step: int  # the last of them
    loss: float  # their mean
    moved: float  # ‖W − W before‖ / ‖W before‖, of all weights
    peak: float  # the largest norm of the whole gradient before clipping
    gradients: dict[str, float]  # a layer's norm, at the last step
    waiting: float  # share of the time


class Finding(NamedTuple):
    """name: one of a fault, said once; advice: what to type, the first thing first."""

    name: str
    evidence: str
    cause: str
    advice: list[str]


def learning_rate(config: dict, factor: float) -> str:
    """The override that multiplies the learning rate, or gives the task's own if it lies that way."""
    lr, own = config["optimizer"]["lr"], config["model"]["recommends"]["lr"]
    adaptive = "Adam" in config["optimizer"]["_target_"]  # what the tasks recommend is meant for these
    good = adaptive and (own > lr if factor > 1 else own < lr / 2)
    return f"optimizer.lr={own if good else min(lr * factor, 1):.2g}"


def rate_too_low(looks: list[Look], baseline: float, config: dict, limits: Limits) -> Finding | None:
    """The loss is flat from the start, and the weights have hardly moved."""
    first, now = looks[0].loss, fmean(look.loss for look in looks[-RECENT:])
    way = sum(look.moved for look in looks)
    seen = looks[0].step <= limits.patience  # from the start on, and not only since a resumed run's last part
    if not seen or now < first * (1 - limits.flat) or way > limits.still:
        return None
    return Finding(
        "flat loss",
        f"the loss was {first:.4g} at step {looks[0].step} and is {now:.4g}; all in all the weights went "
        f"{way:.2%} of their length",
        f"the learning rate, optimizer.lr={config['optimizer']['lr']:g}, is too low",
        [learning_rate(config, 30)],
    )


def rate_too_high(looks: list[Look], baseline: float, config: dict, limits: Limits) -> Finding | None:
    """The loss goes up and down, or does not fall while the weights are thrown about, or were before the
    network died."""
    losses = [look.loss for look in looks[-2 * RECENT :]]
    rises = sum(b - a > limits.rough * baseline for a, b in pairwise(losses))
    before, now = fmean(losses[:RECENT]), fmean(losses[RECENT:])
    rough = rises >= 3 and now >= before
    strides = [look.moved for look in looks]
    stride = max(strides) if now > 0.98 * baseline else fmean(strides[-RECENT:])
    thrown = stride >= limits.stride and now > 0.9 * before  # long strides downhill are what one hopes for
    if not thrown and not rough:
        return None
    steps = looks[-1].step - looks[-2].step
    return Finding(
        "oscillating loss",
        f"over the last {len(losses)} looks the loss went between {min(losses):.4g} and {max(losses):.4g}; "
        f"{steps} steps moved the weights by {stride:.0%} of their length",
        f"the learning rate, optimizer.lr={config['optimizer']['lr']:g}, is too high",
        [learning_rate(config, 0.1), "scheduler.warmup_steps=200"],
    )


def capacity(looks: list[Look], baseline: float, config: dict, limits: Limits) -> Finding | None:
    """The loss has stopped falling, or all but stopped in a stack far smaller than the task's own, while it
    is still high. Resting on the baseline is no sign: a copy task's loss does so before it falls."""
    quarter, half = len(looks) // 4, len(looks) // 2
    before = fmean(look.loss for look in looks[quarter:half])
    now = fmean(look.loss for look in looks[half:])
    size, own = config["cell"]["hidden_size"], config["model"]["recommends"]["hidden_size"]
    layers = config["cell"]["num_layers"]
    small = 8 * size <= own
    gain = limits.gain * (5 if small else 1)
    low, high = (limits.plateau * 2 / 3, float("inf")) if small else (limits.plateau, 0.9)
    if not low < now / baseline < high or now < before * (1 - gain):
        return None
    return Finding(
        "early plateau",
        f"from step {looks[half].step} to {looks[-1].step} the loss was {now:.4g}, {1 - now / before:.1%} "
        f"less than from step {looks[quarter].step} on; knowing the frequencies alone gives {baseline:.4g}",
        f"cell.hidden_size={size} with cell.num_layers={layers} has not the capacity for it",
        [f"cell.hidden_size={max(own, 2 * size)}", f"cell.num_layers={layers + 1}"],
    )


def vanishing(looks: list[Look], baseline: float, config: dict, limits: Limits) -> Finding | None:
    """A layer gets next to no gradient, three looks in a row, though there is loss to be had."""
    recent = looks[-3:]
    last = recent[-1].gradients
    names = [n for n in last if all(look.gradients.get(n, 1.0) < limits.vanishing for look in recent)]
    if not names or len(recent) < 3 or recent[-1].loss < 0.1 * baseline:
        return None
    cell = config["cell"]
    advice = [f"cell.num_layers={cell['num_layers'] // 2}"] if cell["num_layers"] > 2 else []
    if cell["kind"] == "rnn":
        advice.append("cell.kind=lstm")
    if cell["init"] == "torch":
        advice.append("cell.init=xavier")
    return Finding(
        "vanishing gradient",
        f"the gradient's norm was below {limits.vanishing:g} at three looks in "
        + ", ".join(f"{name} ({last[name]:.1g})" for name in names),
        "what flows back is lost on the way (too many layers, or units that are saturated)",
        [*advice, learning_rate(config, 0.3)],
    )


def exploding(looks: list[Look], baseline: float, config: dict, limits: Limits) -> Finding | None:
    """The gradient is huge, be it clipped or not."""
    look = looks[-1]
    largest = max(look.gradients, key=look.gradients.__getitem__)
    if max(look.peak, look.gradients[largest]) < limits.exploding:
        return None
    steps = look.step - looks[-2].step if len(looks) > 1 else look.step
    return Finding(
        "exploding gradient",
        f"within {steps} steps the gradient's norm before clipping reached {look.peak:.2g}; at the last of "
        f"them it was largest in {largest} ({look.gradients[largest]:.2g})",
        f"the recurrence amplifies what flows back (clipping={config['clipping']['name']}, "
        f"optimizer.lr={config['optimizer']['lr']:g})",
        [
            clipping(config),
            learning_rate(config, 0.1),
            *(["cell.kind=lstm"] if config["cell"]["kind"] == "rnn" else []),
        ],
    )


def slow_input(looks: list[Look], baseline: float, config: dict, limits: Limits) -> Finding | None:
    """Three looks in a row the batches were waited for."""
    if len(looks) < 3 or min(look.waiting for look in looks[-3:]) < limits.waiting:
        return None
    workers = config["data"].get("num_workers")
    return Finding(
        "slow input",
        f"{looks[-1].waiting:.0%} of the time went into waiting for batches",
        "reading or making a batch takes longer than a step on it",
        ["data.path=… on a faster disk"] if workers is None else [f"data.num_workers={workers + 2}"],
    )


def not_finite(what: str, looks: list[Look], config: dict) -> Finding:
    curve = ", ".join(f"{look.loss:.4g} at step {look.step}" for look in looks[-3:])
    return Finding(
        "not finite",
        f"{what}; before that the loss was {curve}" if curve else f"{what}, before the first look was due",
        f"the training exploded (clipping={config['clipping']['name']}, "
        f"optimizer.lr={config['optimizer']['lr']:g}, precision={config['precision']['name']})",
        [f"{clipping(config)} {learning_rate(config, 0.1)}"]
        + ([] if config["precision"]["name"] == "32-true" else ["precision=fp32"]),
    )


def out_of_memory(error: BaseException, config: dict) -> Finding:
    data, cell, trainer = config["data"], config["cell"], config["trainer"]
    size, parts = data["batch_size"], trainer["accumulate_grad_batches"]
    sizes = ("batch_size", "sequence_length", "max_length", "delay")
    shape = ", ".join(f"data.{key}={data[key]}" for key in sizes if key in data)
    advice = []
    if size > 1:
        advice.append(f"data.batch_size={size // 2} trainer.accumulate_grad_batches={2 * parts}")
    advice += [
        f"data.{key}={data[key] // 2}" for key in ("sequence_length", "max_length") if data.get(key, 0) > 1
    ]
    advice.append(f"cell.hidden_size={max(1, cell['hidden_size'] // 2)}")
    if cell["backend"] == "scratch":
        advice.insert(0, "cell=fused")  # scratch keeps every gate of every step for the backward pass
    if trainer["accelerator"] == "gpu" and config["precision"]["name"] == "32-true":
        advice.append("precision=bf16")
    return Finding(
        "out of memory",
        f"{(str(error) or 'MemoryError').splitlines()[0]}; {shape}, "
        f"cell.hidden_size={cell['hidden_size']}, cell.num_layers={cell['num_layers']}",
        "for its backward pass a step keeps some numbers for each row, step, unit and layer: more than fit",
        advice,
    )


def graph_kept(older: int, total: int) -> Finding:
    return Finding(
        "state not detached",
        f"of the {total} nodes in the graph behind the second batch's loss, {older} were made by the first "
        "batch: graph and memory grow with each step",
        "a state is carried from batch to batch together with the graph that made it",
        ["self.train_state = detach(state) in training_step (lstmlab.models.base.detach)"],
    )


def clipping(config: dict) -> str:
    """The override that clips, or clips harder."""
    if config["clipping"]["name"] == "norm":
        return f"clipping.max_norm={config['clipping']['max_norm'] / 4:g}"
    return "clipping=norm clipping.max_norm=1"


ABOUT_THE_LOSS = (rate_too_low, rate_too_high)
EACH_LOOK = (vanishing, exploding, slow_input)


def diagnose(looks: list[Look], baseline: float, config: dict, limits: Limits) -> list[Finding]:
    """All that the looks up to now show, though it was said before.

    baseline: the loss of an answer that knows how often each class occurs and no more.
    """
    rules = list(EACH_LOOK)
    trained = looks[-1].step - config["scheduler"]["warmup_steps"]
    if trained >= limits.patience and len(looks) >= 2 * RECENT:
        rules += ABOUT_THE_LOSS
        if trained >= 3 * limits.patience:
            rules.append(capacity)
    findings = (rule(looks, baseline, config, limits) for rule in rules)
    return [finding for finding in findings if finding]
