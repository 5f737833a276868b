"""Changing a trained model while it runs: read, clamp, scale or replace any gate or state, at any step.

Each has a name, a point: `layer0.f`, `layer1.c[174]` (one unit), `layer1.h[3,8]`, `layer0.reverse.c[0:10]`;
in a translation model `encoder.layer0.f`, `decoder.layer0.c`, and `attention`: how much each step of the
decoder attends to each token of the source, `attention[0]` being the first. A change acts where the equation
has that symbol, so that everything after it sees the change:

    model = lstmlab.load(run)
    logits, cache = model.run_with_cache("def f(x):")
    logits = model.run_with_hooks("def f(x):", {"layer1.c[174]": clamp(2.0)})
    written = model.sample("def f(x):", changes={"layer1.c[174]": clamp(2.0)})
"""

import math
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lstmlab.cells import KINDS
from lstmlab.cells.base import Recurrent
from lstmlab.models.attention import Attention
from lstmlab.models.base import Task

Cache = dict[str, Tensor]  # of each point (B, T, H): its values at all steps; of attention (B, T, S)
Change = Callable[[Tensor, int], Tensor]  # values (B, units) at step t → other ones
POINT = re.compile(
    r"(?P<array>attention|(?:\w+\.)*layer\d+\.(?:reverse\.)?[a-z]+)(?:\[(?P<units>[\d:, ]+)\])?"
)


def clamp(value: float, steps: Collection[int] | None = None) -> Change:
    """Set to a value. steps: those at which a change acts, counted from 0 on; None: all."""
    return at(steps, lambda values, t: torch.full_like(values, value))


def scale(factor: float, steps: Collection[int] | None = None) -> Change:
    return at(steps, lambda values, t: factor * values)


def add(value: float, steps: Collection[int] | None = None) -> Change:
    return at(steps, lambda values, t: values + value)


def ablate(mean: Tensor | None = None, steps: Collection[int] | None = None) -> Change:
    """Set to zero, or to the mean over a text: that of a point in a cache (B, T, units)."""
    if mean is None:
        return clamp(0.0, steps)
    average = mean.flatten(0, 1).mean(0)  # (units,)
    return at(steps, lambda values, t: average.to(values).expand_as(values))


def patch_from(values: Tensor, steps: Collection[int] | None = None) -> Change:
    """Set to what the point was in another run: its values in that cache (B or 1, T, units).

    In beam search each hypothesis gets the values of its row. Raises IndexError at a step that the cache
    does not have; `steps` may leave it out.
    """
    return at(steps, lambda now, t: values[:, t].to(now).repeat_interleave(len(now) // len(values), 0))


def at(steps: Collection[int] | None, change: Change) -> Change:
    return lambda values, t: change(values, t) if steps is None or t in steps else values


class Place(NamedTuple):
    """Where a point is: cell, number of the layer and direction, symbol; or the attention."""

    module: Any  # a ScratchCell or an Attention
    number: int
    symbol: str


def list_points(model: Task) -> dict[str, Place]:
    """All gates and states of a model by name, and its attention if it has any."""
    places: dict[str, Place] = {}
    for path, module in model.named_modules():
        if isinstance(module, Attention):
            if module.context_size and places:  # without scratch cells nobody counts its steps
                places["attention"] = Place(module, 0, "attention")
        elif isinstance(module, Recurrent) and hasattr(module, "hooks"):
            kind, D = KINDS[module.kind], module._num_directions
            for number in range(module.num_layers * D):
                layer = f"layer{number // D}." + ("reverse." if number % D else "")
                prefix = "" if path == "cell" else f"{path}."
                for symbol in dict.fromkeys((*kind.gates, *kind.state._fields)):
                    places[f"{prefix}{layer}{symbol}"] = Place(module, number, symbol)
    return places


class CellHooks:
    """The changes in one cell, and what is recorded there. all_hooks: those of the whole model."""

    def __init__(self, all_hooks: dict[Any, "CellHooks"]) -> None:
        self.all_hooks = all_hooks
        self.changes: dict[tuple[int, str], list[tuple[Any, Change]]] = defaultdict(list)
        self.seen: dict[tuple[int, str], dict[int, Tensor]] = {}  # by step, of the places to record
        self.start = 0  # of the next call, whose steps follow those of the calls before
        self.latest = 0  # how many steps the last call had

    def __call__(self, number: int, t: int, symbol: str, value: Tensor, mask: Tensor | None = None) -> Tensor:
        for units, change in self.changes.get((number, symbol), ()):
            value = value.clone()
            value[:, units] = change(value[:, units], self.start + t)
        if mask is not None:
            value = value.masked_fill(~mask, 0)
        if (number, symbol) in self.seen:
            self.seen[number, symbol][self.start + t] = value
        return value

    def restart(self) -> None:
        """Of all cells, since a decoder goes on from the encoder's state."""
        for hooks in self.all_hooks.values():
            hooks.start = 0
            hooks.seen = {place: {} for place in hooks.seen}

    def advance(self, steps: int) -> None:
        self.start += steps
        self.latest = steps


class AttentionHooks(CellHooks):
    """The same for the attention of a decoder, which attends after each call of its cell."""

    def __init__(self, all_hooks: dict[Any, CellHooks], decoder: Any) -> None:
        super().__init__(all_hooks)
        self.decoder = decoder

    def __call__(self, weights: Tensor, mask: Tensor) -> Tensor:  # type: ignore[override]
        """weights (B, T, S) at the T steps of the decoder's last call; after one step (B, K, S) of K
        hypotheses. What is outside the mask (B, S) stays 0."""
        if not self.changes and not self.seen:
            return weights
        decoder = self.all_hooks[self.decoder]
        self.start = decoder.start - decoder.latest
        S = weights.size(2)
        for units, _ in self.changes[0, "attention"]:
            if units != slice(None) and (last := max(units)) >= S:
                raise ValueError(
                    f"'attention[{last}]' is out of range: the longest source has the tokens 0 to {S - 1}"
                )
        rows = weights.unflatten(1, (decoder.latest, -1)).transpose(1, 2).flatten(0, 1)  # (B·K, T, S)
        mask = mask.repeat_interleave(len(rows) // len(mask), 0)  # (B·K, S)
        change = partial(super().__call__, 0, symbol="attention", mask=mask)
        changed = torch.stack([change(t, value=row) for t, row in enumerate(rows.unbind(1))], 1)
        return changed.unflatten(0, (len(weights), -1)).transpose(1, 2).reshape(weights.shape)


@contextmanager
def intervene(model: Task, changes: Mapping[str, Change], record: bool = False) -> Iterator[Cache]:
    """Within it, the model runs with the changes. With `record`, the cache holds its values afterwards.

    One within another adds its changes to those of the outer one.

    Raises ValueError for a point that the model does not have, as without scratch cells, and for a unit out
    of range; for a token of the source, as soon as one is read that does not have it.
    """
    if not changes and not record:
        yield {}
        return
    places = list_points(model)
    outer: dict[Any, Any] = {place.module: place.module.hooks for place in places.values()}
    hooks: dict[Any, CellHooks] = {}
    for module, before in outer.items():
        attends = isinstance(module, Attention)
        hooks[module] = AttentionHooks(hooks, model.decoder) if attends else CellHooks(hooks)
        for place, given in before.changes.items() if before else ():
            hooks[module].changes[place] += given
    for module, *place in places.values() if record else ():
        hooks[module].seen[*place] = {}
    for point, change in changes.items():
        (module, *place), units = find_point(point, places)
        hooks[module].changes[*place].append((units, change))
    cache: Cache = {}
    try:
        for module, of_module in hooks.items():
            module.hooks = of_module
        yield cache
        for name, (module, *place) in places.items() if record else ():
            if seen := hooks[module].seen[*place]:
                cache[name] = torch.stack([seen[t] for t in sorted(seen)], 1)  # (B, T, H)
    finally:
        for module, before in outer.items():
            module.hooks = before


def find_point(point: str, places: Mapping[str, Place]) -> tuple[Place, Any]:
    """Where a point is, and its units as an index. Raises ValueError if there is none of that name."""
    match = POINT.fullmatch(point.strip())
    if match is None or match["array"] not in places:
        known = ", ".join(places) or "none, since only a model with backend=scratch has any"
        raise ValueError(f"{point.strip()!r} is no point of this model, which has {known}")
    place, units = places[match["array"]], match["units"]
    if units is None:
        return place, slice(None)
    index: list[int] = []
    for part in units.replace(" ", "").split(","):
        first, colon, end = part.partition(":")
        if not first.isdigit() or (colon and not end.isdigit()):
            raise ValueError(f"{point.strip()!r} needs units such as [174], [3,8] or [0:10]")
        index += range(int(first), int(end)) if colon else [int(first)]
    size = getattr(
        place.module, "hidden_size", math.inf
    )  # only the attention itself sees how long a source is
    if not index or max(index) >= size:
        known = f": the units are 0 to {size - 1}" if size < math.inf else ""
        raise ValueError(f"{point.strip()!r} is out of range{known}")
    return place, index


def parse_settings(text: str, model: Task) -> dict[str, Change]:
    """The changes of `set=`, such as layer1.c[174]=2; layer0.f[3]=0. Raises ValueError for what is wrong."""
    places, changes = list_points(model), {}
    for setting in filter(None, map(str.strip, text.split(";"))):
        point, equals, value = setting.rpartition("=")
        try:
            number = float(value)
        except ValueError:
            number = float("nan")
        if not equals or number - number != 0:
            raise ValueError(f"set={setting}: give a point and a number, as in set='layer0.c[3]=2'")
        try:
            find_point(point, places)
        except ValueError as error:
            raise ValueError(f"set={setting}: {error}") from None
        changes[point] = clamp(number)
    return changes
