"""Changing a trained model while it runs: read, clamp, scale or replace any gate or state, at any step.

Each has a name, a point: `layer0.f`, `layer1.c[174]` (one unit), `layer1.h[3,8]`, `layer0.reverse.c[0:10]`;
in a translation model `encoder.layer0.f`, `decoder.layer0.c`. A change acts where the equation has that
symbol, so that everything after it sees the change:

    model = lstmlab.load(run)
    logits, cache = model.run_with_cache("def f(x):")
    logits = model.run_with_hooks("def f(x):", {"layer1.c[174]": clamp(2.0)})
    written = model.sample("def f(x):", changes={"layer1.c[174]": clamp(2.0)})
"""

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lstmlab.cells import KINDS
from lstmlab.cells.scratch import ScratchCell
from lstmlab.models.base import Task

Cache = dict[str, Tensor]  # of each point (B, T, H): its values at all steps
Change = Callable[[Tensor, int], Tensor]  # values (B, units) at step t → other ones
POINT = re.compile(r"(?P<array>(?:\w+\.)*layer\d+\.(?:reverse\.)?[a-z]+)(?:\[(?P<units>[\d:, ]+)\])?")


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

    Raises IndexError at a step that the cache does not have; `steps` may leave it out.
    """
    return at(steps, lambda current, t: values[:, t].to(current).expand_as(current))


def at(steps: Collection[int] | None, change: Change) -> Change:
    return lambda values, t: change(values, t) if steps is None or t in steps else values


class Place(NamedTuple):
    """Where a point is: cell, number of the layer and direction, symbol."""

    cell: ScratchCell
    number: int
    symbol: str


def list_points(model: Task) -> dict[str, Place]:
    """All gates and states of a model by name."""
    places = {}
    for path, cell in model.named_modules():
        if isinstance(cell, ScratchCell):
            kind, D = KINDS[cell.kind], cell._num_directions
            for number in range(cell.num_layers * D):
                layer = f"layer{number // D}." + ("reverse." if number % D else "")
                prefix = "" if path == "cell" else f"{path}."
                for symbol in dict.fromkeys((*kind.gates, *kind.state._fields)):
                    places[f"{prefix}{layer}{symbol}"] = Place(cell, number, symbol)
    return places


class CellHooks:
    """The changes in one cell, and what is recorded there. all_hooks: those of the whole model."""

    def __init__(self, all_hooks: dict[ScratchCell, "CellHooks"]) -> None:
        self.all_hooks = all_hooks
        self.changes: dict[tuple[int, str], list[tuple[Any, Change]]] = defaultdict(list)
        self.seen: dict[tuple[int, str], dict[int, Tensor]] = {}  # by step, of the places to record
        self.start = 0  # of the next call, whose steps follow those of the calls before

    def __call__(self, number: int, t: int, symbol: str, value: Tensor) -> Tensor:
        for units, change in self.changes.get((number, symbol), ()):
            value = value.clone()
            value[:, units] = change(value[:, units], self.start + t)
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


@contextmanager
def intervene(model: Task, changes: Mapping[str, Change], record: bool = False) -> Iterator[Cache]:
    """Within it, the model runs with the changes. With `record`, the cache holds its values afterwards.

    Raises ValueError for a point that the model does not have, as without scratch cells, and for a unit out
    of range.
    """
    if not changes and not record:
        yield {}
        return
    places = list_points(model)
    hooks: dict[ScratchCell, CellHooks] = {}
    for place in places.values():
        hooks[place.cell] = hooks.get(place.cell) or CellHooks(hooks)
        if record:
            hooks[place.cell].seen[place.number, place.symbol] = {}
    for point, change in changes.items():
        place, units = find_point(point, places)
        hooks[place.cell].changes[place.number, place.symbol].append((units, change))
    cache: Cache = {}
    try:
        for cell, of_cell in hooks.items():
            cell.hooks = of_cell
        yield cache
        for name, place in places.items() if record else ():
            if seen := hooks[place.cell].seen[place.number, place.symbol]:
                cache[name] = torch.stack([seen[t] for t in sorted(seen)], 1)  # (B, T, H)
    finally:
        for cell in hooks:
            cell.hooks = None


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
    H = place.cell.hidden_size
    if not index or max(index) >= H:
        raise ValueError(f"{point.strip()!r} is out of range: the units are 0 to {H - 1}")
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
