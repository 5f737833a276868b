"""What can be chosen of a cell, checked. Importing this does not import torch."""

from dataclasses import dataclass

from .kinds import BACKENDS, HEADS, KINDS, ROUNDS

INITS = ("xavier", "chrono", "torch")


@dataclass(frozen=True)
class CellOptions:
    """All of a cell but the size of its input.

    backend: scratch (one equation per line), fused (fast), torch (nn.LSTM and its siblings).
    hidden_size: units H of each layer and direction.
    kind: one of those that `BACKENDS` lists for the backend.
    bias: False: no bias_ih and bias_hh.
    proj_size: units P of a projected hidden state (Sak et al. 2014), for kind=lstm; 0: none.
    dropout: on the outputs of each layer but the last, as in nn.LSTM; no effect with one layer.
    variational: the same dropout mask at each time step (Gal & Ghahramani 2016).
    weight_drop: share of the entries of weight_hh that a training call drops (Merity et al. 2018).
    init: xavier, chrono or torch, see `init.initialise_parameters`.
    forget_bias: the LSTM kinds' forget-gate bias under init=xavier, in total.
    chrono_steps: the longest dependency in steps (T_max), for init=chrono.
    batch_first: input and output are (B, T, ·); False: (T, B, ·).
    recompute: fused alone: compute the gates again in the backward pass instead of storing them.
    engine: fused alone: what runs it, see `engines`; auto: the fastest for each call. torch is for the kinds
        that PyTorch has, plain for all but rnn and gru, amx for CPUs with AMX in bf16, on which auto does not
        yet take it.
    heads: blocks of weight_hh, for kind=slstm; None: 4.
    rounds, rank: how often x and h modulate each other, and the rank of the matrices by which they do, for
        kind=mogrifier; None: 4, and whole matrices.

    Raises ValueError for a pair of backend and kind that does not exist and for a value out of range.
    """

    backend: str
    hidden_size: int
    kind: str = "lstm"
    num_layers: int = 1
    bias: bool = True
    proj_size: int = 0
    bidirectional: bool = False
    dropout: float = 0.0
    variational: bool = False
    weight_drop: float = 0.0
    init: str = "xavier"
    forget_bias: float = 1.0
    chrono_steps: int | None = None
    batch_first: bool = True
    recompute: bool = False
    engine: str = "auto"
    heads: int | None = None
    rounds: int | None = None
    rank: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in BACKENDS.get(self.backend, ()):
            pairs = "; ".join(f"{name}: {', '.join(kinds)}" for name, kinds in BACKENDS.items())
            raise ValueError(f"No cell of kind={self.kind!r} in backend={self.backend!r}. There are {pairs}.")
        for name in ("hidden_size", "num_layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1.")
        if self.proj_size and self.kind != "lstm":
            raise ValueError(f"proj_size={self.proj_size} is for kind=lstm, not {self.kind}.")
        if not 0 <= self.proj_size < self.hidden_size:
            raise ValueError(
                f"proj_size={self.proj_size} must be less than hidden_size={self.hidden_size}, or 0 for none."
            )
        for name in ("dropout", "weight_drop"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 0 and less than 1.")
        if self.weight_drop and not KINDS[self.kind].reads_h:
            raise ValueError(
                f"weight_drop={self.weight_drop} drops from weight_hh, which kind={self.kind} does not have."
            )
        if self.init not in INITS:
            raise ValueError(f"init={self.init!r} is unknown; there are {', '.join(INITS)}.")
        gates = KINDS[self.kind].gates
        if self.init == "chrono" and not ("i" in gates and "f" in gates):
            raise ValueError(
                f"init=chrono sets input and forget gates, which kind={self.kind} does not have."
            )
        if self.init == "chrono" and (self.chrono_steps is None or self.chrono_steps < 3):
            raise ValueError(f"init=chrono needs chrono_steps of at least 3, not {self.chrono_steps}.")
        if self.init == "chrono" and not self.bias:
            raise ValueError("init=chrono sets biases, of which bias=False has none.")
        if self.recompute and self.backend != "fused":
            raise ValueError(f"recompute=true is for backend=fused, not {self.backend}.")
        kind = KINDS[self.kind]
        engines = ["auto", "native", "amx", *(["torch"] if "torch" in kind.backends else [])]
        engines += ["plain"] if self.kind not in ("rnn", "gru") else []
        if self.engine not in engines:
            raise ValueError(
                f"engine={self.engine!r} is not for kind={self.kind}: it takes {', '.join(engines)}."
            )
        if self.kind == "slstm":
            heads = HEADS if self.heads is None else self.heads
            if heads < 1 or self.hidden_size % heads:
                raise ValueError(f"heads={heads} must divide hidden_size={self.hidden_size}.")
            object.__setattr__(self, "heads", heads)
        elif self.heads is not None:
            raise ValueError(f"heads={self.heads} is for kind=slstm, not {self.kind}.")
        if self.kind == "mogrifier":
            object.__setattr__(self, "rounds", ROUNDS if self.rounds is None else self.rounds)
        for name in ("rounds", "rank"):
            value = getattr(self, name)
            if value is not None and self.kind != "mogrifier":
                raise ValueError(f"{name}={value} is for kind=mogrifier, not {self.kind}.")
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1.")
