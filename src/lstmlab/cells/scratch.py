"""The ground truth: one step per call and one gate per line, as in the equations.

[h, x] is the concatenation of h_{t−1} and x_t, and W_i = [W_hi, W_ii] puts the stored matrices side
by side. Biases are stored in pairs; the equations have their sum.
"""

import ast
import functools
import inspect
import itertools
import textwrap
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, sigmoid, tanh
from torch.nn.functional import linear

from .kinds import State
from .modern import SLSTM, MinGRU, MinLSTM, Mogrifier, StepResult
from .stack import Stack

Hook = Callable[[int, str, Tensor], Tensor]  # step, symbol, its value → the value to continue with
# Of each kind, the class of its equations
STEPS: dict[str, Any] = {"mogrifier": Mogrifier, "mingru": MinGRU, "minlstm": MinLSTM, "slstm": SLSTM}


def step_of(kind: str) -> Callable[[type], type]:
    """Make a class the equations of a kind. It is built from a layer's weights and called once per step."""

    def register(equations: type) -> type:
        STEPS[kind] = equations
        return equations

    return register


@step_of("lstm")
class LSTM:
    """Hochreiter & Schmidhuber 1997, with the forget gate of Gers et al. 2000.

    i = σ(W_i·[h, x] + b_i)
    f = σ(W_f·[h, x] + b_f)
    g = tanh(W_g·[h, x] + b_g)
    o = σ(W_o·[h, x] + b_o)
    c' = f ⊙ c + i ⊙ g
    h' = o ⊙ tanh(c')
    """

    def __init__(self, weight_ih: Tensor, weight_hh: Tensor, bias_ih: Tensor, bias_hh: Tensor):
        self.W_i, self.W_f, self.W_g, self.W_o = torch.cat([weight_hh, weight_ih], 1).chunk(4)
        self.b_i, self.b_f, self.b_g, self.b_o = (bias_ih + bias_hh).chunk(4)

    def __call__(self, x: Tensor, h: Tensor, c: Tensor) -> StepResult:
        """x (B, I), h and c (B, H)."""
        hx = torch.cat([h, x], -1)
        i = sigmoid(linear(hx, self.W_i, self.b_i))
        f = sigmoid(linear(hx, self.W_f, self.b_f))
        g = tanh(linear(hx, self.W_g, self.b_g))
        o = sigmoid(linear(hx, self.W_o, self.b_o))
        c = f * c + i * g
        h = o * tanh(c)
        return (h, c), {"i": i, "f": f, "g": g, "o": o}


@step_of("peephole")
class Peephole:
    """Gers & Schmidhuber 2000: the gates see the cell state, i and f the old one and o the new one.

    i = σ(W_i·[h, x] + w_ci ⊙ c + b_i)
    f = σ(W_f·[h, x] + w_cf ⊙ c + b_f)
    g = tanh(W_g·[h, x] + b_g)
    c' = f ⊙ c + i ⊙ g
    o = σ(W_o·[h, x] + w_co ⊙ c' + b_o)
    h' = o ⊙ tanh(c')
    """

    def __init__(
        self,
        weight_ih: Tensor,
        weight_hh: Tensor,
        bias_ih: Tensor,
        bias_hh: Tensor,
        weight_ci: Tensor,
        weight_cf: Tensor,
        weight_co: Tensor,
    ):
        self.W_i, self.W_f, self.W_g, self.W_o = torch.cat([weight_hh, weight_ih], 1).chunk(4)
        self.b_i, self.b_f, self.b_g, self.b_o = (bias_ih + bias_hh).chunk(4)
        self.w_ci, self.w_cf, self.w_co = weight_ci, weight_cf, weight_co

    def __call__(self, x: Tensor, h: Tensor, c: Tensor) -> StepResult:
        """x (B, I), h and c (B, H)."""
        hx = torch.cat([h, x], -1)
        i = sigmoid(linear(hx, self.W_i, self.b_i) + self.w_ci * c)
        f = sigmoid(linear(hx, self.W_f, self.b_f) + self.w_cf * c)
        g = tanh(linear(hx, self.W_g, self.b_g))
        c = f * c + i * g
        o = sigmoid(linear(hx, self.W_o, self.b_o) + self.w_co * c)
        h = o * tanh(c)
        return (h, c), {"i": i, "f": f, "g": g, "o": o}


@step_of("layernorm")
class LayerNorm:
    """Ba et al. 2016, for each gate's pre-activation over its H units; gain γ and bias come afterwards.

    LN(a) = γ ⊙ (a − mean(a)) / √(var(a) + 1e-5) + b
    i = σ(LN_i(W_i·[h, x]))
    f = σ(LN_f(W_f·[h, x]))
    g = tanh(LN_g(W_g·[h, x]))
    o = σ(LN_o(W_o·[h, x]))
    c' = f ⊙ c + i ⊙ g
    h' = o ⊙ tanh(c')
    """

    def __init__(self, weight_ih: Tensor, weight_hh: Tensor, bias_ih: Tensor, bias_hh: Tensor, gain: Tensor):
        self.W_i, self.W_f, self.W_g, self.W_o = torch.cat([weight_hh, weight_ih], 1).chunk(4)
        layer_norms = [
            partial(F.layer_norm, normalized_shape=b.shape, weight=gamma, bias=b)
            for gamma, b in zip(gain.chunk(4), (bias_ih + bias_hh).chunk(4), strict=True)
        ]
        self.LN_i, self.LN_f, self.LN_g, self.LN_o = layer_norms

    def __call__(self, x: Tensor, h: Tensor, c: Tensor) -> StepResult:
        """x (B, I), h and c (B, H)."""
        hx = torch.cat([h, x], -1)
        i = sigmoid(self.LN_i(linear(hx, self.W_i)))
        f = sigmoid(self.LN_f(linear(hx, self.W_f)))
        g = tanh(self.LN_g(linear(hx, self.W_g)))
        o = sigmoid(self.LN_o(linear(hx, self.W_o)))
        c = f * c + i * g
        h = o * tanh(c)
        return (h, c), {"i": i, "f": f, "g": g, "o": o}


class ProjectedLSTM(LSTM):
    """Sak et al. 2014: an LSTM whose hidden state is projected to P units, h' = W_hr·(o ⊙ tanh(c'))."""

    def __init__(
        self, weight_ih: Tensor, weight_hh: Tensor, bias_ih: Tensor, bias_hh: Tensor, weight_hr: Tensor
    ):
        super().__init__(weight_ih, weight_hh, bias_ih, bias_hh)
        self.W_hr = weight_hr

    def __call__(self, x: Tensor, h: Tensor, c: Tensor) -> StepResult:
        """x (B, I), h (B, P), c (B, H)."""
        (h, c), gates = super().__call__(x, h, c)
        return (linear(h, self.W_hr), c), gates


@step_of("rnn")
class RNN:
    """Elman 1990: h' = tanh(W·[h, x] + b)."""

    def __init__(self, weight_ih: Tensor, weight_hh: Tensor, bias_ih: Tensor, bias_hh: Tensor):
        self.W = torch.cat([weight_hh, weight_ih], 1)
        self.b = bias_ih + bias_hh

    def __call__(self, x: Tensor, h: Tensor) -> StepResult:
        """x (B, I), h (B, H)."""
        h = tanh(linear(torch.cat([h, x], -1), self.W, self.b))
        return (h,), {}


@step_of("gru")
class GRU:
    """Cho et al. 2014, as nn.GRU has it: the reset gate acts after the product, and has a bias.

    r = σ(W_r·[h, x] + b_r)
    z = σ(W_z·[h, x] + b_z)
    n = tanh(W_in·x + b_in + r ⊙ (W_hn·h + b_hn))
    h' = (1 − z) ⊙ n + z ⊙ h
    """

    def __init__(self, weight_ih: Tensor, weight_hh: Tensor, bias_ih: Tensor, bias_hh: Tensor):
        self.W_r, self.W_z, _ = torch.cat([weight_hh, weight_ih], 1).chunk(3)
        self.b_r, self.b_z, _ = (bias_ih + bias_hh).chunk(3)
        self.W_in, self.b_in = weight_ih.chunk(3)[2], bias_ih.chunk(3)[2]
        self.W_hn, self.b_hn = weight_hh.chunk(3)[2], bias_hh.chunk(3)[2]

    def __call__(self, x: Tensor, h: Tensor) -> StepResult:
        """x (B, I), h (B, H)."""
        hx = torch.cat([h, x], -1)
        r = sigmoid(linear(hx, self.W_r, self.b_r))
        z = sigmoid(linear(hx, self.W_z, self.b_z))
        n = tanh(linear(x, self.W_in, self.b_in) + r * linear(h, self.W_hn, self.b_hn))
        h = (1 - z) * n + z * h
        return (h,), {"r": r, "z": z, "n": n}


@functools.cache
def with_hooks(equations: type) -> Any:
    """The equations with `NAME = self.hook("NAME", …)` in place of each line NAME = …"""
    tree = ast.parse(textwrap.dedent(inspect.getsource(equations.__call__)))
    for line in ast.walk(tree):
        if isinstance(line, ast.Assign) and isinstance(line.targets[0], ast.Name):
            hook: Any = ast.parse(f"self.hook({line.targets[0].id!r})", mode="eval").body
            hook.args.append(line.value)
            line.value = hook
    namespace = dict(equations.__call__.__globals__)
    exec(compile(ast.fix_missing_locations(tree), f"<{equations.__name__} with hooks>", "exec"), namespace)
    return type(equations.__name__, (equations,), {"__call__": namespace["__call__"]})


def run_steps(
    kind: str,
    x: Tensor,
    state: Sequence[Tensor],
    mask: Tensor | None,
    weights: Sequence[Tensor],
    hook: Hook | None = None,
) -> Iterator[StepResult]:
    """The equations over x (T, B, I): the state after each step, and its gates; see `Stack._run_steps`."""
    equations: Any = ProjectedLSTM if kind == "lstm" and len(weights) == 5 else STEPS[kind]
    step = (equations if hook is None else with_hooks(equations))(*weights)
    for t, x_t in enumerate(x):
        if hook is not None:
            step.hook = partial(hook, t)
        new, gates = step(x_t, *state)
        if mask is not None:
            new = tuple(torch.where(mask[t], n, s) for n, s in zip(new, state, strict=True))
        state = new
        yield new, gates


class Hooks(Protocol):
    """What may look at each symbol of a cell's equations, and change it; see `analysis/interventions.py`."""

    def __call__(self, number: int, t: int, symbol: str, value: Tensor) -> Tensor:
        """The value (B, H) to continue with in the layer and direction `number`, at step t of the call."""
        ...

    def restart(self) -> None:
        """A call begins without a state."""
        ...

    def advance(self, steps: int) -> None:
        """A call of so many steps has ended."""
        ...


class ScratchCell(Stack):
    """Any kind of cell, step by step; autograd finds the gradients."""

    hooks: Hooks | None = None

    def _call(self, layers: Callable, input: Any, hx: Any, lengths: Any) -> tuple[Any, Any]:
        if self.hooks is not None and hx is None:
            self.hooks.restart()
        return super()._call(layers, input, hx, lengths)

    def _run_layers(self, x: Tensor, *arguments: Any, **options: Any) -> tuple[Tensor, Sequence[Tensor]]:
        if self.hooks is None:
            return super()._run_layers(x, *arguments, **options)
        self._numbers = itertools.count()
        results = super()._run_layers(x, *arguments, **options)
        self.hooks.advance(x.size(1))
        return results

    def _run_steps(
        self,
        x: Tensor,
        state: Sequence[Tensor],
        mask: Tensor | None,
        weights: Sequence[Tensor],
        traces: list[dict[str, Tensor]] | None = None,
    ) -> tuple[Tensor, Sequence[Tensor]]:
        outputs, steps, hook = [], [], None
        if self.hooks is not None:
            number = next(self._numbers)
            times = range(len(x))[:: -1 if self.bidirectional and number % 2 else 1]
            hooks = self.hooks
            hook = lambda t, *symbol_and_value: hooks(number, times[t], *symbol_and_value)  # noqa: E731
        for final, gates in run_steps(self.kind, x, state, mask, weights, hook):
            outputs.append(final[0])
            if traces is not None:
                steps.append(gates | dict(zip(self._state_type._fields, final, strict=True)))
        if traces is not None:
            traces.append({name: torch.stack([step[name] for step in steps]) for name in steps[0]})
        return torch.stack(outputs), final

    def trace(
        self, x: Tensor, state: State | None = None, lengths: Tensor | None = None
    ) -> tuple[Tensor, State, dict[str, Tensor]]:
        """The results of the call, and every gate and state of each layer, direction and step.

        The third result maps i, f, g, o, c, h (GRU: r, z, n, h; RNN: h) to (L, D, B, T, H), where h and
        c are those after the step. Past a row's length they are zeros.
        """
        traces: list[dict[str, Tensor]] = []  # one per layer and direction, each (T, B, H)
        scan = partial(self._scan_layer, steps=partial(self._run_steps, traces=traces))
        output, final = self._call(partial(self._run_layers, scan=scan), x, state, lengths)
        D = self._num_directions
        for backwards in traces[1::2] if D == 2 else []:
            backwards.update({name: values.flip(0) for name, values in backwards.items()})
        tensors = {}
        for name in traces[0]:
            values = torch.stack([trace[name] for trace in traces])  # (L·D, T, B, H)
            values = values.unflatten(0, (self.num_layers, D)).transpose(2, 3)  # (L, D, B, T, H)
            if lengths is not None:
                steps = torch.arange(values.size(3), device=values.device)
                padding = steps >= lengths.to(values.device)[:, None]  # (B, T)
                values = values.masked_fill(padding[:, :, None], 0)
            tensors[name] = values
        return output, final, tensors
