"""Every kind of cell in plain loops over rows, layers, directions and steps, with its weights by name."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lstmlab import cells
from lstmlab.cells import KINDS


def build_cell(backend: str, input_size: int, hidden_size: int, **options: Any) -> Any:
    """That of `lstmlab.cells`, for any kind and size: with the fewest heads that divide it."""
    if options.get("kind") == "slstm":
        divisors = [n for n in range(2, hidden_size + 1) if hidden_size % n == 0]
        options = {"heads": min(divisors, default=1)} | options
    return cells.build_cell(backend, input_size, hidden_size, **options)


Put = Callable[[str, Tensor], Tensor]  # a symbol and its value → the value to continue with


def σ(a: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-a))


def random_state(
    kind: str, *shape: int, P: int | None = None, dtype: torch.dtype | None = None
) -> list[Tensor]:
    """A state that a cell could be in. P: units of h."""
    names = KINDS[kind].state._fields
    state = [torch.randn(*shape[:-1], P if P and name == "h" else shape[-1], dtype=dtype) for name in names]
    return [1 + s.abs() if name == "n" else s for name, s in zip(names, state, strict=True)]


def reference_step(
    kind: str, p: dict[str, Tensor], x: Tensor, state: Sequence[Tensor], put: Put
) -> tuple[Tensor, ...]:
    """x (I,), h (H,), or (P,) with a projection, the rest of the state (H,); p: the weights by name."""
    h, *rest = state
    W, zero = p["weight_ih"], torch.zeros(len(p["weight_ih"]), dtype=h.dtype)
    b, b_h = p.get("bias_ih", zero), p.get("bias_hh", zero)
    if kind in ("mingru", "minlstm"):
        *gates, g = (W @ x + b).chunk(2 if kind == "mingru" else 3)
        if kind == "mingru":
            new = put("z", σ(gates[0]))
            kept = 1 - new
        else:
            i, f = map(σ, gates)
            new, kept = put("i", i / (i + f)), put("f", f / (i + f))
        return (put("h", kept * h + new * put("g", torch.where(g >= 0, g + 0.5, σ(g)))),)
    R = p["weight_hh"]
    if kind == "rnn":
        return (put("h", torch.tanh(W @ x + b + R @ h + b_h)),)
    if kind == "gru":
        xr, xz, xn = (W @ x + b).chunk(3)
        hr, hz, hn = (R @ h + b_h).chunk(3)
        r, z = put("r", σ(xr + hr)), put("z", σ(xz + hz))
        return (put("h", (1 - z) * put("n", torch.tanh(xn + r * hn)) + z * h),)
    if kind == "slstm":
        c, n, m = rest
        K = R.size(1)
        Rh = torch.einsum("gkij,kj->gki", R.unflatten(0, (4, -1, K)), h.unflatten(0, (-1, K))).flatten()
        i_a, f_a, g, o = (W @ x + b + Rh + b_h).chunk(4)
        started = n != 0
        past = torch.where(started, torch.log(σ(f_a)) + m, -torch.inf)
        m = put("m", torch.where(past > i_a, past, i_a))
        i, f, g = put("i", torch.exp(i_a - m)), put("f", torch.exp(past - m)), put("g", torch.tanh(g))
        c = put("c", torch.where(started, f * c, 0) + i * g)
        n = put("n", f * n + i)
        return put("h", put("o", σ(o)) * c / n), c, n, m
    c = rest[0]
    if kind == "mogrifier":
        for k in range(1, 9):
            name = f"weight_{'q' if k % 2 else 'r'}{k}"
            if f"{name}_left" in p:
                M = p[f"{name}_left"] @ p[f"{name}_right"]
            elif name in p:
                M = p[name]
            else:
                break
            if k % 2:
                x = 2 * σ(M @ h) * x
            else:
                h = 2 * σ(M @ x) * h
    i, f, g, o = (W @ x + R @ h).chunk(4)
    b_i, b_f, b_g, b_o = (b + b_h).chunk(4)
    if kind == "layernorm":

        def norm(a: Tensor) -> Tensor:
            return (a - a.mean()) / ((a - a.mean()).square().mean() + 1e-5).sqrt()

        γ_i, γ_f, γ_g, γ_o = p["gain"].chunk(4)
        i, f, g, o = γ_i * norm(i), γ_f * norm(f), γ_g * norm(g), γ_o * norm(o)
    if kind == "peephole":
        i, f = i + p["weight_ci"] * c, f + p["weight_cf"] * c
    c = put("c", put("f", σ(f + b_f)) * c + put("i", σ(i + b_i)) * put("g", torch.tanh(g + b_g)))
    if kind == "peephole":
        o = o + p["weight_co"] * c
    h = put("h", put("o", σ(o + b_o)) * torch.tanh(c))
    return (p["weight_hr"] @ h if "weight_hr" in p else h), c


def reference(
    cell: Any,
    x: Tensor,
    state: Sequence[Tensor],
    lengths: Sequence[int] | Tensor | None = None,
    put: Callable[[int, int], Put] = lambda k, t: lambda symbol, value: value,
) -> tuple[Tensor, list[Tensor]]:
    """x (B, T, I), state: each (L·D, B, H) → output (B, T, D·H), final state.

    put(k, t): what changes the values of layer and direction k at step t.
    """
    B, T, _ = x.shape
    directions = ("", "_reverse") if cell.bidirectional else ("",)
    outputs, finals = [], []
    for b in range(B):
        n = T if lengths is None else int(lengths[b])
        sequence = list(x[b, :n])
        final = []
        for layer in range(cell.num_layers):
            columns = []
            for d, suffix in enumerate(directions):
                end = f"_l{layer}{suffix}"
                k = layer * len(directions) + d
                p = {name.removesuffix(end): getattr(cell, name) for name in cell._shapes[k]}
                now = tuple(s[k, b] for s in state)
                hs = [now[0]] * n
                for t in range(n) if d == 0 else reversed(range(n)):
                    now = reference_step(cell.kind, p, sequence[t], now, put(k, t))
                    hs[t] = now[0]
                columns.append(hs)
                final.append(now)
            sequence = [torch.cat(parts) for parts in zip(*columns, strict=True)]
        outputs.append(F.pad(torch.stack(sequence), (0, 0, 0, T - n)))
        finals.append(final)
    return torch.stack(outputs), [
        torch.stack([torch.stack([row[k][m] for row in finals]) for k in range(len(finals[0]))])
        for m in range(len(state))
    ]
