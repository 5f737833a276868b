"""Tokenizers of Hugging Face's `tokenizers`: trained here, kept in a checkpoint as a JSON string."""

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from lstmlab.atomic import replace_file
from lstmlab.data.batching import Ragged
from lstmlab.data.rows import Rows
from lstmlab.schema import TokenizerConfig

# Said aloud, since the library warns at every fork of a process that has tokenized. The forks, the
# loaders' workers, never tokenize.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")

PAD, BOS, EOS, UNK = range(4)
SPECIALS = ["<pad>", "<bos>", "<eos>", "<unk>"]
KINDS = ("word", "bpe", "char")
WORD = r"\w+(?:['’]\w+)*|[^\w\s]+"  # isn't stays one word: its negation is what counts


def train_tokenizer(texts: list[str], kind: str, vocab_size: int, lowercase: bool) -> Tokenizer:
    """A tokenizer with ids `PAD`, `BOS`, `EOS`, `UNK` first and at most `vocab_size` in all.

    word: words and runs of punctuation, the most frequent ones. bpe: byte-level byte-pair encoding (Sennrich
    et al. 2016), so no text is unknown and decoding gives back the text. char: characters.
    """
    if kind not in KINDS:
        raise ValueError(f"data.tokenizer={kind} must be one of {', '.join(KINDS)}")
    trainer: trainers.BpeTrainer | trainers.WordLevelTrainer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if kind == "bpe":
        smallest = len(SPECIALS) + len(alphabet)
        if vocab_size < smallest:
            raise ValueError(f"data.vocab_size={vocab_size} must be at least {smallest} for bpe")
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # `prefix` has one
        tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", left=1, right=0)])
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=SPECIALS,
            initial_alphabet=sorted(alphabet),
            show_progress=False,
        )
    else:
        tokenizer = Tokenizer(models.WordLevel(unk_token=SPECIALS[UNK]))
        if kind == "word":
            tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(WORD), "removed", invert=True)
        else:
            tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
            tokenizer.decoder = decoders.Fuse()
        trainer = trainers.WordLevelTrainer(
            vocab_size=vocab_size, special_tokens=SPECIALS, show_progress=False
        )
    prefix = [normalizers.Prepend(" ")] if kind == "bpe" else []  # a text's first word is as any other
    tokenizer.normalizer = normalizers.Sequence([*[normalizers.Lowercase()] * lowercase, *prefix])
    tokenizer.train_from_iterator(texts, trainer)
    return load_tokenizer(tokenizer.to_str())


def load_tokenizer(text: str) -> Tokenizer:
    """The tokenizer of a JSON string, as `Tokenizer.to_str` writes it."""
    tokenizer = Tokenizer.from_str(text)
    tokenizer.encode_special_tokens = True  # a typed "<eos>" is text; not kept in the string
    return tokenizer


def encode(tokenizer: Tokenizer, texts: list[str]) -> Ragged:
    """The ids of each text, without BOS and EOS; a text without any token is one `UNK`."""
    parts, lengths = [np.zeros(0, np.int32)], []
    for start in range(0, len(texts), 1000):  # an Encoding takes some 100 bytes a token
        ids = [e.ids or [UNK] for e in tokenizer.encode_batch_fast(texts[start : start + 1000])]
        lengths += [len(i) for i in ids]
        parts.append(np.concatenate([np.array(i, np.int32) for i in ids]))
    return Ragged(np.concatenate(parts), np.cumsum([0, *lengths]))


def token_texts(rows: Rows, tokenizer: str, kind: str) -> list[str]:
    """The text of each step of `rows`, special tokens included; a line break ends a row.

    tokenizer: a JSON string. kind: one of `KINDS`; words and subwords are followed by a space.
    """
    decode, gap = load_tokenizer(tokenizer).decode, "" if kind == "char" else " "
    return rows.end_lines(
        [decode([i], skip_special_tokens=False) + gap for i in rows.ids[rows.mask].tolist()]
    )


def delimit(sequences: Ragged, first: int | None, last: int) -> Ragged:
    """Each sequence with the ids `first` (None: nothing) before it and `last` after it."""
    flat = np.insert(sequences.flat, sequences.offsets[1:], last)
    offsets = sequences.offsets + np.arange(len(sequences.offsets))
    if first is not None:
        flat = np.insert(flat, offsets[:-1], first)
        offsets = offsets + np.arange(len(offsets))
    return Ragged(flat, offsets)


def fit_and_encode(
    columns: dict[str, list[str]], fit: list[str], config: TokenizerConfig, trained: str | None
) -> tuple[Tokenizer, dict[str, Ragged]]:
    """Encode all columns, with the tokenizer `trained` or, if None, one trained on the columns `fit`.

    Of `config`: `tokenizer`, `vocab_size` and `lowercase`, as in `train_tokenizer`, and the folder `cache`,
    where the result lies under a name made from the texts and the settings: it is made once.
    """
    settings = config.tokenizer, config.vocab_size, config.lowercase
    digest = hashlib.sha256(json.dumps([fit, settings, trained, tokenizers.__version__]).encode())
    for name, texts in columns.items():
        digest.update(json.dumps([name, texts]).encode())
    path = Path(config.cache) / f"tokens-{digest.hexdigest()[:32]}.npz"
    if not path.exists():
        if trained is None:
            tokenizer = train_tokenizer([text for name in fit for text in columns[name]], *settings)
        else:
            tokenizer = load_tokenizer(trained)
        arrays = {"tokenizer": np.frombuffer(tokenizer.to_str().encode(), np.uint8)}
        for name, texts in columns.items():
            encoded = encode(tokenizer, texts)
            arrays |= {f"{name}.flat": encoded.flat, f"{name}.offsets": encoded.offsets}
        path.parent.mkdir(parents=True, exist_ok=True)
        with replace_file(path) as file:  # a run beside this one sees the whole file or none
            np.savez(file, allow_pickle=False, **arrays)
    with np.load(path) as arrays:
        tokenizer = load_tokenizer(arrays["tokenizer"].tobytes().decode())
        return tokenizer, {
            name: Ragged(arrays[f"{name}.flat"], arrays[f"{name}.offsets"]) for name in columns
        }
