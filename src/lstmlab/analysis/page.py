"""One HTML file that colours the text by the values of any unit. It needs no network.

The values are rounded, quantised to 8 bits and deflated. The browser unpacks only what it shows.
"""

import base64
import json
import math
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from lstmlab.analysis.gates import SIGMOIDS

TEMPLATE = Path(__file__).with_name("page.html")
STYLE = Path(__file__).parents[1] / "pages/style.css"
LEVELS = 40
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


def pack_values(values: np.ndarray) -> str:
    """The bytes, deflated (raw, without a header) and in base64."""
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
    return base64.b64encode(compressor.compress(values.tobytes()) + compressor.flush()).decode()


def write_page(
    path: Path,
    title: str,
    subtitle: str,
    tokens: Sequence[str],
    traces: Mapping[str, Tensor],
    features: Mapping[str, np.ndarray],
    half_lives: Tensor | None,
) -> None:
    """Write the page of N tokens.

    traces: name → (L, D, N, H); the page opens with the first. features: name → (N,); units can be ranked by
    them. half_lives: (L, D, H) in steps.
    """
    blocks, scales = [], {}

    def add(key: str, values: np.ndarray) -> None:
        blocks.append(f'<script type="text/plain" id="{key}">{pack_values(values)}</script>')

    for name, values in traces.items():
        for layer, direction in np.ndindex(*values.shape[:2]):
            key = f"{name}-{layer}-{direction}"
            quantised, scale = quantise(name, values[layer, direction].numpy())
            add(key, quantised)
            scales[key] = [float(f"{s:.6g}") for s in scale]
    for k, label in enumerate(features.values()):
        spread = np.ptp(label) or 1
        add(f"feature-{k}", np.rint(255 * (label - label.min()) / spread).astype(np.uint8))
    L, D, _, H = next(iter(traces.values())).shape
    meta: dict[str, Any] = {
        "title": title,
        "subtitle": subtitle,
        "tokens": list(tokens),
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
        "features": [
            {"name": name, "low": float(label.min()), "high": float(label.max())}
            for name, label in features.items()
        ],
        "halfLives": None if half_lives is None else _replace_infinity(half_lives.tolist()),
    }
    text = json.dumps(meta, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    page = TEMPLATE.read_text(encoding="utf-8").replace("/* STYLE */", STYLE.read_text(encoding="utf-8"), 1)
    path.write_text(
        page.replace("<!-- META -->", text, 1).replace("<!-- BLOCKS -->", "\n".join(blocks), 1),
        encoding="utf-8",
    )


def _replace_infinity(values: Any) -> Any:
    """Nested lists with None for infinity, which JSON does not have."""
    if isinstance(values, list):
        return [_replace_infinity(value) for value in values]
    return round(values, 2) if math.isfinite(values) else None
