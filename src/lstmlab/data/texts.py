"""A user's own texts for a language model over words, subwords or characters; labels are not read."""

import hashlib
from pathlib import Path

import numpy as np
from torch.utils.data import DataLoader

from lstmlab.atomic import replace_file
from lstmlab.data.batching import evaluation_loader
from lstmlab.data.parts import (
    check_texts,
    complete_parts,
    describe_parts,
    hash_parts,
    leave_out_repeated,
)
from lstmlab.data.sentiment import clean
from lstmlab.data.sources import describe_source, read_parts
from lstmlab.data.text import STATEFUL_WINDOW, Streams, TextData
from lstmlab.data.tokenization import EOS, delimit, fit_and_encode
from lstmlab.schema import TextsConfig


class Texts(TextData):
    """`data=texts`: one column of what `data=classes` reads, tokenized, as one long text per part.

    Each text ends in `EOS`, and each part also begins with one, so that every token is predicted. The parts
    are split off as those of `classes`, but without regard to labels. Training texts that also occur in
    another part are left out. Validation reads at most `max_val_tokens`, the test all.
    """

    unit = "tokens"

    def __init__(self, config: TextsConfig, seed: int = 0, info: dict | None = None):
        super().__init__(config, seed, info)
        self.trained = None if info is None else info["tokenizer"]

    def prepare_data(self) -> None:
        config: TextsConfig = self.config
        parts = read_parts(config, [config.text])
        check_texts(parts, [config.text], describe_source(config))
        digest, one_group = hash_parts(parts), np.zeros(len(parts["train"][config.text]), int)
        parts, made = complete_parts(parts, config, self.checkpoint, one_group)
        notes: list[str] = []
        if self.checkpoint is None or digest == self.checkpoint["digest"]:
            parts, notes = leave_out_repeated(parts, config.text)

        texts = {part: table[config.text] for part, table in parts.items()}
        if config.strip_markup:
            texts = {part: [clean(text) for text in column] for part, column in texts.items()}
        tokenizer, encoded = fit_and_encode(texts, ["train"], config, self.trained)
        vocab_size = tokenizer.get_vocab_size()
        dtype = np.uint16 if vocab_size <= 2**16 else np.uint32
        train, val, test = (
            np.concatenate([[EOS], delimit(encoded[part], None, EOS).flat]).astype(dtype) for part in parts
        )
        val = val[: config.max_val_tokens]
        ids = np.concatenate([train, val, test])
        self.encoded = Path(config.cache) / f"texts-{hashlib.sha256(ids.tobytes()).hexdigest()[:32]}.bin"
        if not self.encoded.exists():
            with replace_file(self.encoded) as file:
                file.write(ids.tobytes())
        self.meta = {"dtype": np.dtype(dtype).name, "train": len(train), "total": len(ids)}
        self.stop = len(train) + len(val)
        self.info = {
            "tokenizer": tokenizer.to_str(),
            "vocab_size": vocab_size,
            "source": describe_parts(config, parts, made, [*notes, f"sha256 {digest}"]),
            "digest": digest,
        }

    def test_dataloader(self) -> DataLoader:
        tested = Streams(self.encoded, self.meta["dtype"], self.stop, self.meta["total"], 1, STATEFUL_WINDOW)
        return evaluation_loader(tested)
