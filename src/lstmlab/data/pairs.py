"""A user's own pairs of texts: two languages, two spellings, two notations."""

import numpy as np

from lstmlab.data.parts import check_texts, complete_parts, describe_parts, hash_parts
from lstmlab.data.sources import describe_source, read_parts
from lstmlab.data.translation import TranslationData


class Pairs(TranslationData):
    """`data=pairs`: the columns `source` and `target` of files or of a data set of the hub.

    What has no part of its own to validate or to test on is split off from training, with a fixed seed.
    """

    def read(self) -> dict[str, tuple[list[str], list[str]]]:
        config, source = self.config, describe_source(self.config)
        parts = read_parts(config, [config.source, config.target])
        check_texts(parts, [config.source, config.target], source)
        digest, one_group = hash_parts(parts), np.zeros(len(parts["train"][config.source]), int)
        parts, made = complete_parts(parts, config, self.checkpoint, one_group)

        trained = set(parts["train"][config.source])
        notes = [
            f"sources of {part} that occur in train too: {count:,}"
            for part in ("val", "test")
            if (count := sum(text in trained for text in parts[part][config.source]))
        ]
        notes.append(f"sha256 {digest}")
        self.described = {"source": describe_parts(config, parts, made, notes), "digest": digest}
        return {part: (table[config.source], table[config.target]) for part, table in parts.items()}
