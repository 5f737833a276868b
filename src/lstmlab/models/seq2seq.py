"""Translation: a bidirectional encoder, attention, and a decoder that writes one token after the other."""

from collections.abc import Iterator

import torch
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from sacrebleu.metrics import BLEU
from torch import Tensor, nn
from torch.nn import functional as F

from lstmlab.cells import GATES
from lstmlab.cells.dropout import Dropout
from lstmlab.data.tokenization import load_tokenizer
from lstmlab.data.translation import TranslationBatch, decode_targets, encode_sources
from lstmlab.distributed import scale_to_global_mean
from lstmlab.models.attention import ATTENTIONS, Memory
from lstmlab.models.base import Task
from lstmlab.models.decoding import State, beam_search

LINES = 64  # of a text that are translated together


class Seq2Seq(Task):
    """p(y_t | y_<t, x) of source x and target y, of one vocabulary (Luong et al. 2015).

    memory  = encoder(embedding(x)), its final states h_n, c_n
    h_0     = tanh(W h_n + b), and c_0 likewise, where the cell has one: the bridge
    h_t     = decoder(embedding(y_{t-1})); with input feeding, decoder([embedding(y_{t-1}); r_{t-1}])
    r_t     = tanh(W [h_t; context_t] + b): the readout, of the embedding's size
    p(y_t)  = softmax(P r_t + b)

    Without input feeding the whole target runs through the decoder in one call. Loss in nats a token.
    """

    options = ("beam_size", "length_penalty", "attention_map")

    def __init__(self, config: dict, info: dict):
        super().__init__(config, info)
        model, cell = config["model"], config["cell"]
        H, E, V = cell["hidden_size"], model["embedding_size"], info["vocab_size"]
        memory_size = H * (2 if cell["bidirectional"] else 1)
        self.input_feeding: bool = model["input_feeding"]
        self.dropout = Dropout(model["dropout"])

        self.source_embedding = nn.Embedding(V, E)
        self.target_embedding = nn.Embedding(V, E)
        self.encoder = self.build_cell(E)
        members = 2 if "f" in GATES[cell["kind"]] else 1  # of the state: h and c, or h alone
        layers = cell["num_layers"]
        self.bridge = nn.ModuleList(nn.Linear(layers * memory_size, layers * H) for _ in range(members))
        self.decoder = self.build_cell(2 * E if self.input_feeding else E, bidirectional=False)
        self.attention = ATTENTIONS[model["attention"]](H, memory_size)
        self.readout = nn.Linear(H + self.attention.context_size, E)
        self.projection = nn.Linear(E, V)
        for matrix in (self.source_embedding, self.target_embedding, self.projection):
            nn.init.normal_(matrix.weight, std=E**-0.5)  # logits of the order of 1; see `embed`
        if model["tie_weights"] != "none":
            self.projection.weight = self.target_embedding.weight
        if model["tie_weights"] == "all":
            self.source_embedding.weight = self.target_embedding.weight

    # --- the model ---

    def embed(self, embedding: nn.Embedding, tokens: Tensor) -> Tensor:
        """Tokens (…) → (…, E), of variance 1 at the start though the matrix may be the output's as well
        (Vaswani et al. 2017, section 3.4)."""
        return self.dropout(embedding(tokens) * embedding.embedding_dim**0.5)

    def encode(self, source: Tensor, lengths: Tensor) -> tuple[Memory, State]:
        """Source (B, S) and its lengths (B,) → what attention reads, and the decoder's first state."""
        output, state = self.encoder(self.embed(self.source_embedding, source), lengths=lengths)
        members = []
        for linear, final in zip(self.bridge, state, strict=True):
            flat = final.transpose(0, 1).flatten(1)  # (L·D, B, H) → (B, L·D·H)
            first = torch.tanh(linear(flat)).unflatten(1, (-1, final.size(2)))  # (B, L, H)
            members.append(first.transpose(0, 1).contiguous())
        steps = torch.arange(source.size(1), device=source.device)
        mask = steps < lengths.to(source.device)[:, None]  # (B, S)
        return self.attention.memory(self.dropout(output), mask), type(state)(*members)

    def read(self, hidden: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        """Decoder outputs (B, T, H) → readouts (B, T, E) and attention weights (B, T, S)."""
        context, weights = self.attention(hidden, memory)
        return torch.tanh(self.readout(torch.cat([hidden, context], -1))), weights

    def step(
        self, embedded: Tensor, readout: Tensor, state: State, memory: Memory
    ) -> tuple[Tensor, Tensor, State]:
        """One token further: embedded tokens (B, K, E) of K hypotheses for each source, the readouts before
        them (B, K, E) and states (L, B·K, H) → readouts (B, K, E), weights (B, K, S), states."""
        if self.input_feeding:
            embedded = torch.cat([embedded, readout], -1)
        hidden, state = self.decoder(embedded.flatten(0, 1)[:, None], state)  # (B·K, 1, H)
        readout, weights = self.read(hidden.view(*embedded.shape[:2], -1), memory)
        return readout, weights, state

    def forward(self, source: Tensor, lengths: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Source (B, S), its lengths (B,), and target tokens (B, T), BOS first → logits of the tokens that
        follow each of them (B, T, V) and attention weights (B, T, S)."""
        memory, state = self.encode(source, lengths)
        embedded = self.embed(self.target_embedding, target)  # (B, T, E)
        if not self.input_feeding:
            hidden, _ = self.decoder(embedded, state)
            readouts, weights = self.read(hidden, memory)
        else:
            readout, steps = torch.zeros_like(embedded[:, :1]), []
            for t in range(target.size(1)):
                readout, attended, state = self.step(embedded[:, t : t + 1], readout, state, memory)
                steps.append((readout, attended))
            readouts, weights = (torch.cat(parts, 1) for parts in zip(*steps, strict=True))
        return self.projection(self.dropout(readouts)), weights

    def loss(self, batch: TranslationBatch, label_smoothing: float = 0.0, r_drop: float = 0.0) -> Tensor:
        """Cross-entropy per target token, whatever stands behind a target's end. With `r_drop` = α > 0 each
        pair is read twice, with dropout masks of its own, which gives p and q, and the loss is

        (CE(p) + CE(q)) / 2 + α/2 · (KL(p‖q) + KL(q‖p)), the divergences per target token as well.

        R-Drop (Liang et al. 2021) takes CE(p) + CE(q), not their mean: its α is twice this one.
        """
        if r_drop:
            batch = TranslationBatch(*(torch.cat([member, member]) for member in batch))
        logits, _ = self(batch.source, batch.source_lengths, batch.target[:, :-1])
        # At least float32, whatever the precision of the matrices: exp(loss) is reported
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        steps = torch.arange(1, batch.target.size(1), device=logits.device)
        real = steps < batch.target_lengths[:, None]  # (B, T)
        loss = F.cross_entropy(
            logits.flatten(0, 1),
            batch.target[:, 1:].masked_fill(~real, -100).flatten(),
            ignore_index=-100,
            label_smoothing=label_smoothing,
        )
        if not r_drop:
            return loss
        (p, q), (to_p, to_q) = logits.softmax(-1).chunk(2), logits.chunk(2)
        # Σ (p - q) (log p - log q), in which the logits will do: Σ (p - q) is 0
        divergence = ((p - q) * (to_p - to_q)).sum(-1)  # (B, T): KL(p‖q) + KL(q‖p)
        real = real[: len(divergence)]
        return loss + r_drop / 2 * (divergence * real).sum() / real.sum()

    @torch.inference_mode()
    def search(
        self, source: Tensor, lengths: Tensor, beam_size: int = 1, length_penalty: float = 1.0
    ) -> Tensor:
        """Tokens (B, T) of the best translations found of source (B, S): see `beam_search`.

        None is longer than the longest target trained on.
        """
        memory, first = self.encode(source, lengths)

        def step(tokens: Tensor, state: State) -> tuple[Tensor, State]:
            readout = state[0].view(*tokens.shape, -1)  # (1, B·K, E) → (B, K, E)
            embedded = self.embed(self.target_embedding, tokens)
            readout, _, after = self.step(embedded, readout, state[1:], memory)
            return self.projection(readout), (readout.flatten(0, 1)[None], *after)

        tokens, _ = beam_search(
            step,
            (first[0].new_zeros(1, len(source), self.projection.in_features), *first),
            size=beam_size,
            length_penalty=length_penalty,
            max_length=self.info["max_target_length"] - 1,  # BOS is given
            bos=self.info["bos"],
            eos=self.info["eos"],
            pad=self.info["pad"],
        )
        return tokens

    def translate(self, source: Tensor, lengths: Tensor, beam_size: int, length_penalty: float) -> list[str]:
        """The texts of `search`."""
        return decode_targets(self.info, self.search(source, lengths, beam_size, length_penalty).tolist())

    # --- training, validation, test ---

    def training_step(self, batch: TranslationBatch, index: int) -> Tensor:
        model = self.config["model"]
        loss = self.loss(batch, model["label_smoothing"], model["r_drop"])
        loss = scale_to_global_mean(loss, batch.target_lengths.sum() - len(batch.target))
        self.log_step({"train/loss": loss}, prog_bar=True)
        return loss

    def on_validation_epoch_start(self) -> None:
        self.predictions: list[str] = []
        self.truths: list[str] = []

    def validation_step(self, batch: TranslationBatch, index: int) -> None:
        self._log_loss("val", batch)
        if self.config["model"]["translate_val"]:
            self._translate(batch, beam_size=1, length_penalty=1.0)

    def on_validation_epoch_end(self) -> None:
        self.log("val/perplexity", self.trainer.callback_metrics["val/loss"].exp())
        if self.predictions:
            self._log_translations("val")
        super().on_validation_epoch_end()

    def on_test_epoch_start(self) -> None:
        self.on_validation_epoch_start()

    def test_step(self, batch: TranslationBatch, index: int) -> None:
        self._log_loss("test", batch)
        model = self.config["model"]
        self._translate(batch, model["beam_size"], model["length_penalty"])

    def on_test_epoch_end(self) -> None:
        self.log("test/perplexity", self.trainer.callback_metrics["test/loss"].exp())
        self._log_translations("test")
        lower = BLEU(lowercase=True)
        self.log("test/bleu_lower", lower.corpus_score(self.predictions, [self.truths]).score)
        self.print(f"test/bleu_lower {lower.get_signature()}")

    def _log_loss(self, part: str, batch: TranslationBatch) -> None:
        count = int(batch.target_lengths.sum()) - len(batch.target)  # the mean is over tokens
        self.log(f"{part}/loss", self.loss(batch), prog_bar=True, batch_size=count)

    def _translate(self, batch: TranslationBatch, beam_size: int, length_penalty: float) -> None:
        self.predictions += self.translate(batch.source, batch.source_lengths, beam_size, length_penalty)
        self.truths += decode_targets(self.info, batch.target.tolist())

    def _log_translations(self, part: str) -> None:
        # Cased, if the texts are; tokenised as 13a
        bleu = BLEU(lowercase=self.config["data"]["lowercase"])
        self.log(f"{part}/sacrebleu", bleu.corpus_score(self.predictions, [self.truths]).score)
        same = [p == t for p, t in zip(self.predictions, self.truths, strict=True)]
        self.log(f"{part}/exact_match", sum(same) / len(same))
        if part == "test":
            self.print(f"test/sacrebleu {bleu.get_signature()}")

    def count_tokens(self, batch: TranslationBatch) -> int:
        return batch.target.numel()

    def targets(self, batch: TranslationBatch) -> Tensor:
        steps = torch.arange(batch.target.size(1), device=batch.target.device)
        return batch.target[(steps >= 1) & (steps < batch.target_lengths[:, None])]

    # --- to look at ---

    def respond(self, text: str, options: dict) -> Iterator[str]:
        """Each line of the text translated; `options["attention_map"]` names a picture of the first one's."""
        if not text.strip():
            raise ValueError("text= is empty; give a sentence to translate")
        lines, how = text.splitlines(), (options["beam_size"], options["length_penalty"])
        for start in range(0, len(lines), LINES):
            part = lines[start : start + LINES]
            source, lengths = (tensor.to(self.device) for tensor in encode_sources(self.info, part))
            if start == 0 and options["attention_map"] is not None:
                if self.config["model"]["attention"] == "none":
                    raise ValueError("attention_map= has nothing to show: model.attention=none")
                self.attention_map(source[:1], lengths[:1], *how).savefig(options["attention_map"])
            translations = self.translate(source, lengths, *how)
            pairs = zip(part, translations, strict=True)
            yield "\n" * (start > 0) + "\n".join(found if line.strip() else "" for line, found in pairs)

    def examples(self, batch: TranslationBatch) -> tuple[list[str], list[list]]:
        source, lengths, target = batch.source[:5], batch.source_lengths[:5], batch.target[:5]
        texts = decode_targets(self.info, source.tolist())
        truths = decode_targets(self.info, target.tolist())
        predictions = self.translate(source, lengths, 1, 1.0)
        rows = [list(row) for row in zip(texts, predictions, truths, strict=True)]
        return ["source", "prediction", "truth"], rows

    def picture(self, batch: TranslationBatch) -> Figure | None:
        if self.config["model"]["attention"] == "none":
            return None
        return self.attention_map(batch.source[:1], batch.source_lengths[:1])

    def attention_map(
        self, source: Tensor, lengths: Tensor, beam_size: int = 1, length_penalty: float = 1.0
    ) -> Figure:
        """How much each token of the translation looks at each token of one source (1, S)."""
        tokens = self.search(source, lengths, beam_size, length_penalty)  # (1, T)
        tokens = tokens[:, : int(tokens.ne(self.info["pad"]).sum())]
        given = F.pad(tokens[:, :-1], (1, 0), value=self.info["bos"])
        with torch.inference_mode():
            _, weights = self(source, lengths, given)
        tokenizer = load_tokenizer(self.info["tokenizer"])
        font = get_font(findfont("DejaVu Sans"))  # matplotlib's own, which lacks some scripts

        def label(token: int) -> str:
            text = tokenizer.decode([token], skip_special_tokens=False).strip() or "␣"
            return "".join(c if font.get_char_index(ord(c)) else f"U+{ord(c):X}" for c in text)

        columns, rows = ([label(token) for token in ids[0].tolist()] for ids in (source, tokens))
        figure = Figure((2 + len(columns) / 4, 1 + len(rows) / 4), layout="constrained")
        axes = figure.add_subplot()
        axes.imshow(weights[0].float().cpu().numpy(), cmap="Blues", vmin=0, vmax=1, aspect="auto")
        axes.xaxis.tick_top()
        axes.set_xticks(range(len(columns)), columns, rotation=90, parse_math=False)
        axes.set_yticks(range(len(rows)), rows, parse_math=False)
        return figure
