"""Translation of texts by an encoder and a decoder with attention."""

from collections.abc import Iterator
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from sacrebleu.metrics import BLEU
from torch import Tensor
from torch.nn import functional as F

from lstmlab.data.features import Features, position_in_text
from lstmlab.data.rows import Rows, choose_rows
from lstmlab.data.tokenization import load_tokenizer, token_texts
from lstmlab.data.translation import TranslationBatch, decode_targets, encode_sources
from lstmlab.distributed import scale_to_global_mean
from lstmlab.models.attention import Memory
from lstmlab.models.encoder_decoder import EncoderDecoder
from lstmlab.schema import PredictConfig

LINES = 64  # lines of a text that are translated together


class Seq2Seq(EncoderDecoder):
    """Source texts and target texts as tokens of one vocabulary. The loss is in nats per token."""

    options = ("beam_size", "length_penalty", "attention_map")
    page = "seq2seq.html"

    def loss(self, batch: TranslationBatch, label_smoothing: float = 0.0, r_drop: float = 0.0) -> Tensor:
        """Cross-entropy per target token; what stands behind a target's end is ignored.

        With `r_drop` = α > 0 each pair is read twice, under different dropout masks. With the two predictions
        p and q the loss is (CE(p) + CE(q)) / 2 + α/2 · (KL(p‖q) + KL(q‖p)), where the divergences are per
        target token as well. R-Drop (Liang et al. 2021) takes CE(p) + CE(q), not their mean: its α is twice
        this one.
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
        # Σ (p - q) (log p - log q), where logits may stand for log p and log q since Σ (p - q) = 0
        divergence = ((p - q) * (to_p - to_q)).sum(-1)  # (B, T): KL(p‖q) + KL(q‖p)
        real = real[: len(divergence)]
        return loss + r_drop / 2 * (divergence * real).sum() / real.sum()

    def translate(self, source: Tensor, lengths: Tensor, beam_size: int, length_penalty: float) -> list[str]:
        """The texts of `search`."""
        return decode_targets(self.info, self.search(source, lengths, beam_size, length_penalty).tolist())

    # --- training, validation, test ---

    def training_step(self, batch: TranslationBatch, index: int) -> Tensor:
        model = self.config.model
        loss = self.loss(batch, model.label_smoothing, model.r_drop)
        loss = scale_to_global_mean(loss, batch.target_lengths.sum() - len(batch.target))
        self.log_step({"train/loss": loss}, prog_bar=True)
        return loss

    def on_validation_epoch_start(self) -> None:
        self.predictions: list[str] = []
        self.truths: list[str] = []

    def validation_step(self, batch: TranslationBatch, index: int) -> None:
        self._log_loss("val", batch)
        if self.config.model.translate_val:
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
        model = self.config.model
        self._translate(batch, model.beam_size, model.length_penalty)

    def on_test_epoch_end(self) -> None:
        self.log("test/perplexity", self.trainer.callback_metrics["test/loss"].exp())
        self._log_translations("test")
        column = getattr(self.config.data, "target", None)
        if column and (found := compute_moses_bleu(self.predictions, self.truths, column.rpartition(".")[2])):
            score, signature = found
            self.log("test/bleu_moses", score)
            self.print(f"test/bleu_moses {signature}")

    def _log_loss(self, part: str, batch: TranslationBatch) -> None:
        count = int(batch.target_lengths.sum()) - len(batch.target)  # the mean is over tokens
        self.log(f"{part}/loss", self.loss(batch), prog_bar=True, batch_size=count)

    def _translate(self, batch: TranslationBatch, beam_size: int, length_penalty: float) -> None:
        self.predictions += self.translate(batch.source, batch.source_lengths, beam_size, length_penalty)
        self.truths += decode_targets(self.info, batch.target.tolist())

    def _log_translations(self, part: str) -> None:
        # Cased, if the texts are; tokenised as 13a
        bleu = BLEU(lowercase=self.config.data.lowercase)
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

    def respond(self, text: str, options: PredictConfig) -> Iterator[str]:
        """The translation of each line; `options.attention_map` names a picture to draw for the first."""
        if not text.strip():
            raise ValueError("text= is empty; give a sentence to translate")
        lines, how = text.splitlines(), (options.beam_size, options.length_penalty)
        for start in range(0, len(lines), LINES):
            part = lines[start : start + LINES]
            source, lengths = (tensor.to(self.device) for tensor in encode_sources(self.info, part))
            if start == 0 and options.attention_map is not None:
                if self.config.model.attention == "none":
                    raise ValueError("attention_map= has nothing to show: model.attention=none")
                self.draw_attention(source[:1], lengths[:1], *how).savefig(options.attention_map)
            translations = self.translate(source, lengths, *how)
            pairs = zip(part, translations, strict=True)
            yield "\n" * (start > 0) + "\n".join(found if line.strip() else "" for line, found in pairs)

    def answer(self, texts: list[str], options: PredictConfig) -> list[dict[str, Any]]:
        """The translation of each text; that of an empty one is empty."""
        source, lengths = (tensor.to(self.device) for tensor in encode_sources(self.info, texts))
        translations = self.translate(source, lengths, options.beam_size, options.length_penalty)
        return [
            {"translation": translation if text.strip() else ""}
            for text, translation in zip(texts, translations, strict=True)
        ]

    def examples(self, batch: TranslationBatch) -> tuple[list[str], list[list]]:
        source, lengths, target = batch.source[:5], batch.source_lengths[:5], batch.target[:5]
        texts = decode_targets(self.info, source.tolist())
        truths = decode_targets(self.info, target.tolist())
        predictions = self.translate(source, lengths, 1, 1.0)
        rows = [list(row) for row in zip(texts, predictions, truths, strict=True)]
        return ["source", "prediction", "truth"], rows

    def draw_example(self, batch: TranslationBatch) -> Figure | None:
        return self.draw_rows(Rows(batch.source, batch.source_lengths))

    def draw_rows(self, rows: Rows) -> Figure | None:
        if self.config.model.attention == "none":
            return None
        lengths = rows.lengths[:1]
        return self.draw_attention(rows.ids[:1, : int(lengths)], lengths)

    def draw_attention(
        self, source: Tensor, lengths: Tensor, beam_size: int = 1, length_penalty: float = 1.0
    ) -> Figure:
        """How much each token of the translation attends to each token of one source (1, S)."""
        tokens = self.search(source, lengths, beam_size, length_penalty)  # (1, T)
        tokens = tokens[:, : int(tokens.ne(self.info["pad"]).sum())]
        given = F.pad(tokens[:, :-1], (1, 0), value=self.info["bos"])
        with torch.inference_mode():
            _, weights = self(source, lengths, given)
        tokenizer = load_tokenizer(self.info["tokenizer"])
        # Matplotlib's own font lacks some scripts
        font = get_font(findfont("DejaVu Sans"))

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

    # --- to analyse ---

    def read_text(self, text: str) -> Rows:
        """One sentence per line."""
        lines = [line for line in text.splitlines() if line.strip()]
        if not lines:
            raise ValueError("text= is empty; give a sentence to read")
        return Rows(*encode_sources(self.info, lines))

    def run(self, rows: Rows) -> Tensor:
        return self.search(rows.ids.to(self.device), rows.lengths)

    def compute_losses(self, rows: Rows) -> Tensor:
        """Those of the true target's tokens, (B, T − 1)."""
        assert rows.labels is not None
        target = rows.labels.to(self.device)
        logits, _ = self(rows.ids.to(self.device), rows.lengths, target[:, :-1])
        losses = F.cross_entropy(logits.transpose(1, 2), target[:, 1:], reduction="none")
        return losses.masked_fill(target[:, 1:] == self.info["pad"], torch.nan)

    def measure_reading(self, rows: Rows) -> Tensor | None:
        """The variance over the source of ∂score/∂unit · unit, as a mean over the predictions (D·H,). With
        dot and general, ∂score/∂unit · unit is what the unit adds to the score."""
        if not self.attention.context_size:
            return None
        calls: list[tuple[Tensor, Memory]] = []
        handle = self.attention.register_forward_pre_hook(lambda module, given: calls.append(given))
        try:
            with torch.no_grad():
                there = ~self.compute_losses(rows).isnan()  # (B, T − 1)
        finally:
            handle.remove()
        memory, read = calls[0][1], []
        outside, counts = ~memory.mask[:, :, None], memory.mask.sum(1)[:, None]  # (B, S, 1), (B, 1)
        values = memory.values.requires_grad_()  # (B, S, D·H)
        for query in torch.cat([query for query, _ in calls], 1).split(1, 1):
            score = self.attention.score(query, self.attention.keys(values))  # (B, 1, S)
            added = values.detach() * torch.autograd.grad(score.sum(), values)[0]
            mean = added.masked_fill(outside, 0).sum(1, keepdim=True) / counts[:, None]
            read.append((added - mean).masked_fill(outside, 0).square().sum(1) / counts)
        return torch.stack(read, 1)[there].mean(0)

    def rows_of_batch(self, batch: TranslationBatch) -> Rows:
        return Rows(batch.source.cpu(), batch.source_lengths.cpu(), batch.target.cpu())

    def validation_rows(self, datamodule: Any, count: int) -> Rows:
        dataset = datamodule.datasets["val"]
        return self.rows_of_batch(dataset[choose_rows(dataset.source.lengths, count)])

    def token_texts(self, rows: Rows) -> list[str]:
        return token_texts(rows, self.info["tokenizer"], self.config.data.tokenizer)

    def text_features(self, rows: Rows, language: str | None) -> Features:
        return {"position in text": position_in_text(rows.lengths.numpy())}


def compute_moses_bleu(predictions: list[str], truths: list[str], language: str) -> tuple[float, str] | None:
    """BLEU as papers on Multi30k report it, and its signature; None unless Moses has rules for the language
    and finds words in it.

    Lower-cased, with punctuation normalised, and tokenised, without splits at hyphens. This is what
    `scripts/task1-tokenize.sh` in github.com/multi30k/dataset does. It made the texts of the shared tasks
    (Elliott et al. 2017, Barrault et al. 2018). There is no smoothing, as in Moses' multi-bleu.perl.
    """
    import sacremoses  # takes half a second, and only a test needs it
    from sacremoses.corpus import NonbreakingPrefixes

    known = {*NonbreakingPrefixes().available_langs.values()} - {"zh", "yue"}  # written without spaces
    if language not in known:
        return None
    normalizer = sacremoses.MosesPunctNormalizer(language, perl_parity=True)
    tokenizer = sacremoses.MosesTokenizer(language)
    tokenized = [
        [tokenizer.tokenize(normalizer.normalize(text.lower()), return_str=True) for text in texts]
        for texts in (predictions, truths)
    ]
    bleu = BLEU(tokenize="none", smooth_method="none", force=True)  # force: no warning that it is tokenised
    score = bleu.corpus_score(tokenized[0], [tokenized[1]]).score
    how = f"lower-cased, normalised and tokenised by sacremoses {sacremoses.__version__} for {language}"
    return score, f"{bleu.get_signature()}, on text {how}"
