"""One HTML file that shows what is inside a model while it reads a text. It needs no network.

The values are rounded, quantised to 8 bits and deflated. The browser unpacks only what it shows.
"""

import base64
import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from lstmlab.analysis.gates import RETAINS, SIGMOIDS, memory_of
from lstmlab.pages import assemble_page

LEVELS = 40
FINENESS = 40  # of the logarithm of a gate that keeps a memory
STEPS = 50  # of the root of what is written into a memory
LABELS = {  # in the order of the page's menu; any other letter comes last, without a label
    "c": "cell state c",
    "h": "hidden state h",
    "f": "forget gate f",
    "i": "input gate i",
    "g": "candidate g",
    "o": "output gate o",
    "z": "update gate z",
    "r": "reset gate r",
    "n": "candidate n",  # of an sLSTM, the normaliser n
    "m": "stabiliser m",
}


def quantise(name: str, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values (N, H) → bytes (H, N) and each unit's scale (H,).

    For gates between 0 and 1, byte = 255 · value. For others, byte = 128 + 127 · value / scale, so that 0
    stays 0; scale is the largest |value| of the unit, but at least 1 unless it is a cell state. Values are
    first rounded to one of `LEVELS` steps from 0 to 1, or half as many from 0 to the scale: the eye sees no
    difference, and the page is 40 % smaller.
    """
    if name in SIGMOIDS:
        rounded = np.rint(LEVELS * values.T) / LEVELS
        return np.rint(255 * rounded).astype(np.uint8), np.ones(values.shape[1], np.float32)
    scale = np.maximum(np.abs(values).max(0), 1e-6 if name == "c" else 1)
    rounded = np.rint(LEVELS / 2 * (values / scale).T) / (LEVELS / 2)
    return np.rint(128 + 127 * rounded).astype(np.uint8), scale


def quantise_memory(
    retained: np.ndarray, memory: np.ndarray, starts: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A memory m' = r ⊙ m + w as bytes of r and of w, each (H, N), and the largest |w| of each unit (H,).

    retained: r (N, H). memory: m (N, H), which is 0 before each step at which starts (N,) is True.
    r ≈ exp(−byte / `FINENESS`). The errors of its logarithm are carried from step to step, so that the
    product over any stretch is right to 1 / `FINENESS`. w ≈ ± largest · ((byte − 128) / `STEPS`)²; its errors
    are carried as well, times r.
    """
    exponents = np.minimum(-np.log(np.maximum(retained.astype(np.float64), 1e-300)), 255 / FINENESS)
    gate = np.diff(np.floor(FINENESS * exponents.cumsum(0) + 0.5), axis=0, prepend=0)
    before = np.concatenate([np.zeros_like(memory[:1]), memory[:-1]])
    written = memory - np.where(starts[:, None], 0, retained) * before
    largest = np.maximum(np.abs(written).max(0), 1e-12)
    kept = np.where(starts[:, None], 0, np.exp(-gate / FINENESS))
    codes, error = np.empty_like(gate), np.zeros(memory.shape[1])
    for t, w in enumerate(written / largest):
        wanted = w + kept[t] * error
        codes[t] = np.sign(wanted) * np.minimum(np.rint(STEPS * np.sqrt(np.abs(wanted))), STEPS)
        error = wanted - np.sign(codes[t]) * (codes[t] / STEPS) ** 2
    return gate.T.astype(np.uint8), (128 + codes).T.astype(np.uint8), largest


def pack_values(values: np.ndarray) -> str:
    """The bytes, deflated (raw, without a header) and in base64."""
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
    return base64.b64encode(compressor.compress(values.tobytes()) + compressor.flush()).decode()


def build_page(
    title: str,
    subtitle: str,
    tokens: Sequence[str],
    lengths: Sequence[int],
    kind: str,
    traces: Mapping[str, Tensor],
    features: Mapping[str, np.ndarray],
    half_lives: Tensor | None,
    cell: str = "cell",
) -> str:
    """The page of N tokens as HTML.

    lengths: those of the sequences that the tokens are, which sum to N. kind: that of the cell.
    traces: name → (L, D, N, H); the page opens with the first. features: name → (N,); units can be ranked by
    them. half_lives: (L, D, H) in steps. cell: the name of the cell in the model.
    """
    starts = np.zeros(len(tokens), bool)
    starts[np.cumsum([0, *lengths[:-1]])] = True
    values = {name: trace.numpy() for name, trace in traces.items()}
    L, D, _, H = next(iter(values.values())).shape
    memory = describe_memory(kind, values)
    derived = "h" if {"h", "o", "c"} <= values.keys() and _is_derived(**values) else None
    packed = {name: value for name, value in values.items() if name != derived}
    blocks, scales = pack_traces(packed, memory, starts)
    for k, label in enumerate(features.values()):
        spread = np.ptp(label) or 1
        blocks[f"feature-{k}"] = pack_values(np.rint(255 * (label - label.min()) / spread).astype(np.uint8))
    meta: dict[str, Any] = {
        "title": title,
        "subtitle": subtitle,
        "tokens": list(tokens),
        "starts": np.flatnonzero(starts).tolist(),
        "layers": L,
        "directions": D,
        "units": H,
        "values": [
            {
                "name": n,
                "label": "normaliser n" if n == "n" and "m" in traces else LABELS.get(n, n),
                "gate": n in SIGMOIDS,
            }
            for n in traces
        ],
        "scales": scales,
        "memory": memory,
        "derived": derived,
        "prefix": "" if cell == "cell" else f"{cell}.",
        "features": list(features),
        "halfLives": None if half_lives is None else _replace_infinity(half_lives.tolist()),
    }
    return assemble_page("analysis.html", ["text.js", "states.js"], meta, blocks)


def pack_traces(
    values: Mapping[str, np.ndarray], memory: Mapping[str, Any], starts: np.ndarray
) -> tuple[dict[str, str], dict[str, list[float]]]:
    """Each of the values (L, D, N, H), by name, layer and direction, and the scale of each unit.

    memory: see `describe_memory`; the scale of a memory is its largest |w|. starts (N,): where
    sequences begin.
    """
    blocks: dict[str, str] = {}
    scales: dict[str, list[float]] = {}

    def add(key: str, quantised: np.ndarray, scale: np.ndarray) -> None:
        blocks[key] = pack_values(np.ascontiguousarray(quantised))
        scales[key] = [float(f"{s:.6g}") for s in scale]

    L, D, _, H = next(iter(values.values())).shape
    for layer, direction in np.ndindex(L, D):
        here = {name: trace[layer, direction] for name, trace in values.items()}
        if "name" in memory:
            gate, name = memory["gate"], memory["name"]
            retained = 1 - here[gate] if memory["complement"] else here[gate]
            turn = slice(None, None, -1 if direction else 1)
            begins = np.roll(starts, -1) if direction else starts  # the other direction begins at the ends
            gates, writes, largest = quantise_memory(retained[turn], here.pop(name)[turn], begins[turn])
            add(f"{gate}-{layer}-{direction}", gates[:, turn], np.ones(H))
            add(f"{name}-{layer}-{direction}", writes[:, turn], largest)
            del here[gate]
        for name, trace in here.items():
            add(f"{name}-{layer}-{direction}", *quantise(name, trace))
    return blocks, scales


def describe_memory(kind: str, values: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """How a cell's memory is kept, or why the page cannot say what wrote it."""
    retains = RETAINS.get(kind)
    if retains is None:
        return {
            "reason": f"In kind={kind} no gate keeps the memory, so it is no sum of what each step wrote."
        }
    gate, name = retains[-1], memory_of(kind)
    if not {gate, name} <= values.keys():
        return {"reason": f"For this the page needs {name} and {gate}, and page_values has left one out."}
    return {
        "name": name,
        "gate": gate,
        "complement": retains != gate,
        "keeps": retains,
        "fineness": FINENESS,
        "steps": STEPS,
    }


def _is_derived(o: np.ndarray, c: np.ndarray, h: np.ndarray, **_: np.ndarray) -> bool:
    """Whether the page can compute h as o ⊙ tanh(c), as it is in most LSTM kinds."""
    return np.allclose(h, o * np.tanh(c), atol=1e-4)


def _replace_infinity(values: Any) -> Any:
    """Nested lists with None for infinity, which JSON does not have."""
    if isinstance(values, list):
        return [_replace_infinity(value) for value in values]
    return round(values, 2) if math.isfinite(values) else None
