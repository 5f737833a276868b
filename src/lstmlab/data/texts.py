"""Texts, without labels, for a language model of words, subwords or characters: your own, and IMDB's."""

import hashlib
from pathlib import Path

import numpy as np
from torch.utils.data import DataLoader

from lstmlab.atomic import replace_file
from lstmlab.data.batching import evaluation_loader
from lstmlab.data.files import read_splits
from lstmlab.data.parts import (
    check_texts,
    complete_parts,
    describe_parts,
    hash_parts,
    leave_out_repeated,
)
from lstmlab.data.sentiment import IMDB, clean
from lstmlab.data.sources import describe_source, read_parts
from lstmlab.data.text import STATEFUL_WINDOW, Streams, TextData
from lstmlab.data.tokenization import EOS, delimit, fit_and_encode
from lstmlab.schema import IMDBTextsConfig, TextsConfig


class TokenizedTexts(TextData):
    """Texts, tokenized, as one long text per part. A subclass gives `read`.

    Each text ends in `EOS`, and each part also begins with one, so that every token is predicted. Validation
    reads at most `max_val_tokens`, a test all.
    """

    unit = "tokens"
    strip_markup = True  # HTML is removed from the texts

    def __init__(self, config: TextsConfig | IMDBTextsConfig, seed: int = 0, info: dict | None = None):
        super().__init__(config, seed, info)
        self.trained = None if info is None else info["tokenizer"]

    def read(self) -> tuple[dict[str, list[str]], dict[str, str]]:
        """The texts of train, val and, if there is one, test; and what `info` says about them."""
        raise NotImplementedError

    def prepare_data(self) -> None:
        config = self.config
        texts, described = self.read()
        if self.strip_markup:
            texts = {part: [clean(text) for text in column] for part, column in texts.items()}
        tokenizer, encoded = fit_and_encode(texts, ["train"], config, self.trained)
        vocab_size = tokenizer.get_vocab_size()
        dtype = np.uint16 if vocab_size <= 2**16 else np.uint32
        streams = {
            part: np.concatenate([[EOS], delimit(rows, None, EOS).flat]).astype(dtype)
            for part, rows in encoded.items()
        }
        streams["val"] = streams["val"][: config.max_val_tokens]
        ids = np.concatenate(list(streams.values()))
        self.encoded = Path(config.cache) / f"texts-{hashlib.sha256(ids.tobytes()).hexdigest()[:32]}.bin"
        if not self.encoded.exists():
            with replace_file(self.encoded) as file:
                file.write(ids.tobytes())
        self.meta = {"dtype": np.dtype(dtype).name, "train": len(streams["train"]), "total": len(ids)}
        self.stop = len(streams["train"]) + len(streams["val"])
        self.info = {"tokenizer": tokenizer.to_str(), "vocab_size": vocab_size} | described


class Texts(TokenizedTexts):
    """`data=texts`: one column of what `data=classes` reads.

    The parts are split off as those of `classes`, but without regard to labels. Training texts that also
    occur in another part are left out.
    """

    def __init__(self, config: TextsConfig, seed: int = 0, info: dict | None = None):
        super().__init__(config, seed, info)
        self.strip_markup = config.strip_markup

    def read(self) -> tuple[dict[str, list[str]], dict[str, str]]:
        config: TextsConfig = self.config
        parts = read_parts(config, [config.text])
        check_texts(parts, [config.text], describe_source(config))
        digest, one_group = hash_parts(parts), np.zeros(len(parts["train"][config.text]), int)
        parts, made = complete_parts(parts, config, self.checkpoint, one_group)
        notes: list[str] = []
        if self.checkpoint is None or digest == self.checkpoint["digest"]:
            parts, notes = leave_out_repeated(parts, config.text)
        source = describe_parts(config, parts, made, [*notes, f"sha256 {digest}"])
        texts = {part: table[config.text] for part, table in parts.items()}
        return texts, {"source": source, "digest": digest}

    def test_dataloader(self) -> DataLoader:
        tested = Streams(self.encoded, self.meta["dtype"], self.stop, self.meta["total"], 1, STATEFUL_WINDOW)
        return evaluation_loader(tested)


class IMDBTexts(TokenizedTexts):
    """`data=imdb_texts`: the reviews that `data=imdb` trains on and the 50,000 that nobody labelled.

    The reviews that `data=imdb` validates on validate here too, with the same `val_size`. Unlabelled reviews
    that occur among the labelled ones (641) and repetitions are left out. No review of the test set is
    trained on. With `unlabelled=false` only the labelled ones are read.
    """

    held_out = "val_size"

    def read(self) -> tuple[dict[str, list[str]], dict[str, str]]:
        labelled = {split: texts for split, (texts, _) in IMDB(self.config).read().items()}
        texts = {"train": labelled["train"], "val": labelled["val"]}
        if self.config.unlabelled:
            files = {"unlabelled": "unsupervised-*.parquet"}
            found = read_splits(self.config, files, {"text": str}, "data=texts")["unlabelled"]["text"]
            known = {text for column in labelled.values() for text in column}
            texts["train"] += [text for text in dict.fromkeys(found) if text not in known]
        source = f"{len(texts['train']):,} reviews to train, {len(texts['val']):,} to validate"
        return texts, {"source": source}
