"""What the ids of a language model stand for: characters, or the tokens of a tokenizer."""

from collections.abc import Iterable, Iterator

import numpy as np
from torch import Tensor

from lstmlab.data import features
from lstmlab.data.rows import Rows
from lstmlab.data.tokenization import BOS, EOS, PAD, UNK, load_tokenizer, token_texts


class Characters:
    """Id i is character i of a string, whose first is UNKNOWN."""

    never_drawn = (0,)

    def __init__(self, characters: str):
        self.characters = characters
        self.first = characters[1:2]  # a prompt where there is no other

    def __len__(self) -> int:
        return len(self.characters)

    def encode_prompt(self, text: str) -> list[int]:
        """Raises ValueError for a text that is empty or holds a character that is not known."""
        ids = {character: i for i, character in enumerate(self.characters) if i > 0}
        if unknown := sorted(set(text) - ids.keys()):
            known = "".join(ids)
            raise ValueError(f"text= holds {unknown[0]!r}, not in the model's vocabulary: {known!r}")
        if not text:
            raise ValueError("text= is empty; give at least one character to start from")
        return [ids[character] for character in text]

    def encode(self, text: str) -> list[int]:
        """A character that is not known is UNKNOWN."""
        known = {character: i for i, character in enumerate(self.characters)}
        return [known.get(character, 0) for character in text]

    def decode(self, ids: Iterable[int]) -> str:
        """The characters without UNKNOWN."""
        return "".join(self.characters[i] for i in ids if i > 0)

    def continue_text(self, prompt: list[int], blocks: Iterable[Tensor]) -> Iterator[str]:
        """The text of ids (1, T) drawn after the prompt, piece by piece."""
        for block in blocks:
            yield self.decode(block[0].tolist())

    def step_texts(self, rows: Rows) -> list[str]:
        return [self.characters[i] for i in rows.ids[rows.mask].tolist()]

    def compute_features(self, rows: Rows, language: str) -> features.Features:
        compute = features.python if language == "python" else features.english
        return compute("".join(self.step_texts(rows)))


class Tokens:
    """Ids of a tokenizer, given as a JSON string; `kind` is data.tokenizer. A text begins after `EOS`."""

    never_drawn = (PAD, BOS, UNK)
    first = ""

    def __init__(self, tokenizer: str, kind: str):
        self.json, self.kind = tokenizer, kind
        self.tokenizer = load_tokenizer(tokenizer)

    def __len__(self) -> int:
        return self.tokenizer.get_vocab_size()

    def encode_prompt(self, text: str) -> list[int]:
        return [EOS, *self.tokenizer.encode(text).ids]

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text).ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text without special tokens."""
        return self.tokenizer.decode(list(ids))

    def continue_text(self, prompt: list[int], blocks: Iterable[Tensor]) -> Iterator[str]:
        """The text of ids (1, T) drawn after the prompt, piece by piece, up to `EOS`."""
        ids, written = list(prompt), self.decode(prompt)
        for block in blocks:
            drawn = block[0].tolist()
            ends = EOS in drawn
            ids += drawn[: drawn.index(EOS)] if ends else drawn
            text = self.decode(ids)
            if not text.endswith("\ufffd"):  # the first bytes of a character
                yield text[len(written) :]
                written = text
            if ends:
                return

    def step_texts(self, rows: Rows) -> list[str]:
        return token_texts(rows, self.json, self.kind)

    def compute_features(self, rows: Rows, language: str) -> features.Features:
        ids, ends = rows.ids[rows.mask], rows.lengths.cumsum(0)
        starts = {0, *ends.tolist(), *((ids == EOS).nonzero()[:, 0] + 1).tolist()}
        return {"position in text": features.position_in_text(np.diff(sorted(starts)))}
