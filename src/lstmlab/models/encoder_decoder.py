"""An encoder, attention, and a decoder that writes one token at a time: the network of model=seq2seq."""

from typing import Any

import torch
from torch import Tensor, nn

from lstmlab.cells import KINDS, SLSTMState
from lstmlab.cells.dropout import Dropout
from lstmlab.models.attention import ATTENTIONS, Memory
from lstmlab.models.base import Graph, Task
from lstmlab.models.decoding import State, Step, beam_search
from lstmlab.schema import TrainConfig


class EncoderDecoder(Task):
    """p(y_t | y_<t, x) for source x and target y, which share one vocabulary (Luong et al. 2015).

    memory  = encoder(embedding(x)), with final states h_n, c_n
    h_0     = tanh(W h_n + b), and the same for c_0 of an LSTM: the bridge
    h_t     = decoder(embedding(y_{t-1})); with input feeding, decoder([embedding(y_{t-1}); r_{t-1}])
    r_t     = tanh(W [h_t; context_t] + b): the readout, as large as the embedding
    p(y_t)  = softmax(P r_t + b)

    Without input feeding the whole target runs through the decoder in one call.
    """

    def __init__(self, config: TrainConfig, info: dict):
        super().__init__(config, info)
        model, cell = config.model, config.cell
        H, E, V = cell.hidden_size, model.embedding_size, info["vocab_size"]
        memory_size = H * (2 if cell.bidirectional else 1)
        self.input_feeding: bool = model.input_feeding
        self.dropout = Dropout(model.dropout)

        self.source_embedding = nn.Embedding(V, E)
        self.target_embedding = nn.Embedding(V, E)
        self.encoder = self.build_cell(E)
        members = [name for name in KINDS[cell.kind].state._fields if name in "hc"]
        layers = cell.num_layers
        self.bridge = nn.ModuleList(nn.Linear(layers * memory_size, layers * H) for _ in members)
        self.decoder = self.build_cell(2 * E if self.input_feeding else E, bidirectional=False)
        self.attention = ATTENTIONS[model.attention](H, memory_size)
        self.readout = nn.Linear(H + self.attention.context_size, E)
        self.projection = nn.Linear(E, V)
        for matrix in (self.source_embedding, self.target_embedding, self.projection):
            nn.init.normal_(matrix.weight, std=E**-0.5)  # logits of the order of 1; see `embed_scaled`
        if model.tie_weights != "none":
            self.projection.weight = self.target_embedding.weight
        if model.tie_weights == "all":
            self.source_embedding.weight = self.target_embedding.weight

    def embed_scaled(self, embedding: nn.Embedding, tokens: Tensor) -> Tensor:
        """Tokens (…) → (…, E), with initial variance 1 although the output layer may share the matrix
        (Vaswani et al. 2017, section 3.4)."""
        return self.dropout(embedding(tokens) * embedding.embedding_dim**0.5)

    def embed_ids(self, ids: Tensor) -> Tensor:
        return self.embed_scaled(self.source_embedding, ids)

    def encode(self, source: Tensor, lengths: Tensor) -> tuple[Memory, State]:
        """Source (B, S) and its lengths (B,) → the memory for attention and the decoder's first state."""
        output, state = self.encoder(self.embed_ids(source), lengths=lengths)
        members = []
        if isinstance(state, SLSTMState):
            state = state._replace(c=state.c / state.n)  # what it remembers, whatever the weights of its past
        for linear, final in zip(self.bridge, state, strict=False):
            flat = final.transpose(0, 1).flatten(1)  # (L·D, B, H) → (B, L·D·H)
            first = torch.tanh(linear(flat)).unflatten(1, (-1, final.size(2)))  # (B, L, H)
            members.append(first.transpose(0, 1).contiguous())
        if isinstance(state, SLSTMState):  # as after one step with an input gate of e⁰
            members += [torch.ones_like(members[1]), torch.zeros_like(members[1])]
        steps = torch.arange(source.size(1), device=source.device)
        mask = steps < lengths.to(source.device)[:, None]  # (B, S)
        return self.attention.memory(self.dropout(output), mask), type(state)(*members)

    def attend(self, hidden: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        """Decoder outputs (B, T, H) → readouts (B, T, E) and attention weights (B, T, S)."""
        context, weights = self.attention(hidden, memory)
        return torch.tanh(self.readout(torch.cat([hidden, context], -1))), weights

    def step(
        self, embedded: Tensor, readout: Tensor, state: State, memory: Memory
    ) -> tuple[Tensor, Tensor, State]:
        """Decode one token: embedded tokens (B, K, E) of K hypotheses per source, the readouts before them
        (B, K, E) and states (L, B·K, H) → readouts (B, K, E), weights (B, K, S) and new states."""
        if self.input_feeding:
            embedded = torch.cat([embedded, readout], -1)
        hidden, state = self.decoder(embedded.flatten(0, 1)[:, None], state)  # (B·K, 1, H)
        readout, weights = self.attend(hidden.view(*embedded.shape[:2], -1), memory)
        return readout, weights, state

    def forward(self, source: Tensor, lengths: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Source (B, S), its lengths (B,) and target tokens (B, T) from BOS on → logits (B, T, V) of the
        token after each of them, and attention weights (B, T, S)."""
        memory, state = self.encode(source, lengths)
        embedded = self.embed_scaled(self.target_embedding, target)  # (B, T, E)
        if not self.input_feeding:
            hidden, _ = self.decoder(embedded, state)
            readouts, weights = self.attend(hidden, memory)
        else:
            readout, steps = torch.zeros_like(embedded[:, :1]), []
            for t in range(target.size(1)):
                readout, attended, state = self.step(embedded[:, t : t + 1], readout, state, memory)
                steps.append((readout, attended))
            readouts, weights = (torch.cat(parts, 1) for parts in zip(*steps, strict=True))
        return self.projection(self.dropout(readouts)), weights

    def begin(self, source: Tensor, lengths: Tensor) -> tuple[Step, State]:
        """The step and the first state of a `beam_search` for source (B, S)."""
        memory, first = self.encode(source, lengths)

        def step(tokens: Tensor, state: State) -> tuple[Tensor, State]:
            readout = state[0].view(*tokens.shape, -1)  # (1, B·K, E) → (B, K, E)
            embedded = self.embed_scaled(self.target_embedding, tokens)
            readout, _, after = self.step(embedded, readout, state[1:], memory)
            return self.projection(readout), (readout.flatten(0, 1)[None], *after)

        return step, (first[0].new_zeros(1, len(source), self.projection.in_features), *first)

    @torch.inference_mode()
    def search(
        self, source: Tensor, lengths: Tensor, beam_size: int = 1, length_penalty: float = 1.0
    ) -> Tensor:
        """Tokens (B, T) of the best translations found for source (B, S); see `beam_search`.

        They are no longer than the longest training target.
        """
        step, state = self.begin(source, lengths)
        tokens, _ = beam_search(
            step,
            state,
            size=beam_size,
            length_penalty=length_penalty,
            max_length=self.info["max_target_length"] - 1,  # without BOS
            bos=self.info["bos"],
            eos=self.info["eos"],
            pad=self.info["pad"],
        )
        return tokens

    # --- analysis and export ---

    def traced_cell(self) -> nn.Module:
        return self.encoder

    def graphs(self) -> dict[str, Graph]:
        """The encoder, and one step of the decoder, which takes a memory and a state."""

        def decode(token: Tensor, readout: Tensor, *rest: Tensor) -> Any:
            memory, state = Memory(*rest[:3]), rest[3:]
            embedded = self.embed_scaled(self.target_embedding, token[:, None])  # (B, 1, E)
            readout, weights, state = self.step(embedded, readout, state, memory)
            return self.projection(readout)[:, 0], weights[:, 0], readout, state

        source, lengths = torch.ones(2, 5, dtype=torch.long), torch.tensor([5, 3])
        with torch.no_grad():
            memory, state = self.encode(source, lengths)
        members: Any = state
        carried = {name: (member, "BS") for name, member in memory._asdict().items()}
        carried |= {name: (member, "LBH") for name, member in members._asdict().items()}
        readout = torch.zeros(2, 1, self.projection.in_features)
        after = [f"next_{name}" for name in members._fields]
        return {
            "encoder": Graph(
                self.encode, {"source": (source, "BS"), "lengths": (lengths, "B")}, list(carried)
            ),
            "decoder": Graph(
                decode,
                {"token": (source[:, 0], "B"), "readout": (readout, "B")} | carried,
                ["logits", "attention", "next_readout", *after],
            ),
        }
