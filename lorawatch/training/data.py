"""A recipe's rows as data sets that the Trainer takes: random tokens, tokenised rows, packed rows."""

from __future__ import annotations

import random
from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from typing import Any, NamedTuple

import torch
from torch.utils.data import Dataset

from lorawatch.analysis.padding import padding_to_longest
from lorawatch.errors import DataError, RecipeError
from lorawatch.recipe.schema import Data as DataKeys
from lorawatch.recipe.schema import Recipe
from lorawatch.training.packing import Packing
from lorawatch.training.sources import Row, read_rows
from lorawatch.training.tokenization import FORMS, IGNORED, Example, encode

Item = dict[str, torch.Tensor]


class SyntheticData(Dataset[Item]):
    """Random tokens in rows of full length. Each row is drawn from the seed and its index when it is read.

    Args:
        rows: Number of rows.
        sequence_length: Positions of each row.
        vocabulary: Number of token ids.
        seed: The recipe's seed.
        begin: Index of the first row.
    """

    def __init__(self, rows: int, sequence_length: int, vocabulary: int, seed: int, begin: int = 0) -> None:
        self._rows, self._length, self._vocabulary, self._seed = rows, sequence_length, vocabulary, seed
        self._begin = begin

    def __len__(self) -> int:
        return self._rows

    def __getitem__(self, index: int) -> Item:
        # torch's generator uses only the low 32 bits of a seed.
        """A row: `input_ids` and `labels`, both of shape (sequence_length,), INT64."""
        mixed = blake2b(f"{self._seed}/{self._begin + index}".encode(), digest_size=4).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(mixed, "little"))
        ids = torch.randint(self._vocabulary, (self._length,), generator=generator)
        return {"input_ids": ids, "labels": ids}

    def description(self) -> str:
        """The data in a few words, for people."""
        return f"{len(self):,} rows of random tokens"

    @property
    def fingerprint(self) -> str:
        """Equal for equal rows, however many there are: a run that is resumed for more steps has the same first rows."""
        return f"synthetic-{self._length}-{self._vocabulary}-{self._seed}"


@dataclass
class TokenizedData(Dataset[Item]):
    """Tokenised rows, stored end to end in two arrays: five bytes a token.

    Attributes:
        cut: Rows that were longer than the sequence length.
        dropped: Rows left out because they had no label within it.
    """

    cut: int = 0
    dropped: int = 0
    _ids: array[int] = field(default_factory=lambda: array("i"))
    _learned: bytearray = field(default_factory=bytearray)
    _ends: array[int] = field(default_factory=lambda: array("q"))

    def add(self, example: Example, sequence_length: int) -> None:
        """Append a row, cut to the sequence length. A row without a label that the loss can be taken on is dropped."""
        ids, learned = example.ids, example.learned
        if len(ids) > sequence_length:
            self.cut += 1
            ids, learned = ids[:sequence_length], learned[:sequence_length]
        if not any(learned[1:]):  # no position predicts the first token
            self.dropped += 1
            return
        self._ids.extend(ids)
        self._learned.extend(learned)
        self._ends.append(len(self._ids))

    def split_off(self, rows: int, seed: int) -> tuple[TokenizedData, TokenizedData]:
        """Two sets, each in this order: the rows that stay, and as many as asked for, drawn by a seed.

        Rows that are equal can be in both, where a data set repeats them.

        Args:
            rows: How many to draw.
            seed: Of the draw.
        """
        drawn = set(random.Random(seed).sample(range(len(self)), rows))
        sets = TokenizedData(self.cut, self.dropped), TokenizedData()
        begin = 0
        for row, end in enumerate(self._ends):
            into = sets[row in drawn]
            into._ids.extend(self._ids[begin:end])
            into._learned.extend(self._learned[begin:end])
            into._ends.append(len(into._ids))
            begin = end
        return sets

    @property
    def tokens(self) -> int:
        """Positions of all rows."""
        return len(self._ids)

    @property
    def lengths(self) -> list[int]:
        """Positions of each row."""
        return [end - begin for begin, end in zip([0, *self._ends], self._ends, strict=False)]

    def description(self) -> str:
        """The data in a few words, for people."""
        parts = [f"{len(self):,} rows, {self.tokens:,} tokens"]
        if self.cut:
            parts.append(f"{self.cut:,} cut")
        if self.dropped:
            parts.append(f"{self.dropped:,} dropped")
        return ", ".join(parts)

    @property
    def fingerprint(self) -> str:
        """Equal for equal rows in the same order."""
        digest = blake2b(self._ids.tobytes(), digest_size=8)
        digest.update(self._learned)
        digest.update(self._ends.tobytes())
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> Item:
        """A row: `input_ids` and `labels`, both of shape (positions,), INT64; a label is `IGNORED` where no loss is
        taken.
        """
        end = self._ends[index]
        start = self._ends[index - 1] if index else 0
        ids = torch.tensor(self._ids[start:end], dtype=torch.long)
        learned = torch.frombuffer(self._learned, dtype=torch.bool, count=end - start, offset=start)
        return {"input_ids": ids, "labels": ids.masked_fill(~learned, IGNORED)}


class PackedData(Dataset[Item]):
    """Tokenised rows in blocks of one length, several rows to a block.

    The first token of each row has no label, because the position before it belongs to another row.

    Args:
        rows: At least one.
        length: Positions of a block; no row is longer.
    """

    def __init__(self, rows: TokenizedData, length: int) -> None:
        self.rows = rows
        self.packing = Packing.from_lengths(rows.lengths, length)

    def __len__(self) -> int:
        return len(self.packing)

    def __getitem__(self, index: int) -> Item:
        """A block: `input_ids`, `labels` and `position_ids`, each of shape (positions of its rows,), INT64."""
        items = [self.rows[row] for row in self.packing.block(index)]
        for item in items:
            item["labels"][0] = IGNORED
            item["position_ids"] = torch.arange(len(item["labels"]))
        return {name: torch.cat([item[name] for item in items]) for name in items[0]}

    def description(self) -> str:
        """The data in a few words, for people."""
        packing = self.packing
        blocks = f"{len(self):,} blocks of {packing.length} with {packing.padding:.1%} padding"
        return f"{self.rows.description()}, {blocks}"

    @property
    def fingerprint(self) -> str:
        """Equal for equal rows in the same blocks."""
        return f"{self.rows.fingerprint}-{blake2b(self.packing.layout_bytes(), digest_size=8).hexdigest()}"

    def summary(self, batch_size: int, *, to_longest: bool) -> str:
        """What packing saves, for people.

        `packed 2,113 rows into 391 blocks of 512: 3.1% padding instead of 47.2% with each row padded to 512`

        Args:
            batch_size: Rows of a batch.
            to_longest: Without packing, rows would be padded to the longest of their batch, not to the length of a block.
        """
        packing, lengths = self.packing, self.rows.lengths
        if to_longest:
            before, how = padding_to_longest(lengths, batch_size), "each batch padded to its longest row"
        else:
            before, how = 1 - packing.tokens / (len(lengths) * packing.length), f"each row padded to {packing.length}"
        return (
            f"packed {len(lengths):,} rows into {len(self):,} blocks of {packing.length}: {packing.padding:.1%} padding "
            f"instead of {before:.1%} with {how}"
        )


TrainingData = SyntheticData | TokenizedData | PackedData


class RecipeDatasets(NamedTuple):
    """A recipe's rows: to train on, and to evaluate on where the recipe has any."""

    train: TrainingData
    evaluation: SyntheticData | TokenizedData | None = None


def build_training_data(recipe: Recipe, tokenizer: Any, vocabulary: int, world_size: int) -> TrainingData:
    """The rows to train on.

    Args:
        recipe: The run's.
        tokenizer: The model's; not used for random tokens.
        vocabulary: Number of token ids.
        world_size: Ranks that train one model.

    Raises:
        DataError, RecipeError: As `build_datasets`.
    """
    return build_datasets(recipe, tokenizer, vocabulary, world_size).train


def build_datasets(recipe: Recipe, tokenizer: Any, vocabulary: int, world_size: int) -> RecipeDatasets:
    """The rows to train on and to evaluate on.

    Args:
        recipe: The run's.
        tokenizer: The model's; not used for random tokens.
        vocabulary: Number of token ids.
        world_size: Ranks that train one model.

    Raises:
        DataError: The data is missing, broken, empty or smaller than one step of all ranks, or `data.eval_share` of it
            is less than a row.
        RecipeError: Random tokens without `train.steps`.
        MissingDependency: A package that reads this kind of file is missing.
    """
    train, data = recipe.train, recipe.data
    rows_a_step = train.batch_size_per_gpu * train.gradient_accumulation * world_size
    rows: TrainingData
    evaluation: SyntheticData | TokenizedData | None = None
    if data.source == "synthetic":
        if train.steps is None:
            raise RecipeError(
                "train.steps is null, but random tokens have no epoch", hint="set train.steps to a number"
            )
        draw = partial(SyntheticData, sequence_length=data.sequence_length, vocabulary=vocabulary, seed=train.seed)
        rows = draw(train.steps * rows_a_step)
        if held := _held_out_count(data, len(rows)):
            evaluation = draw(held, begin=1 << 40)  # beyond every row that a longer training would read
    else:
        tokenized, left = _tokenized(recipe, tokenizer, data.source, data.split, "data.source"), ""
        if held := _held_out_count(data, len(tokenized)):
            tokenized, evaluation = tokenized.split_off(held, train.seed)
            left = f" beside the {held} of data.eval_share"
        rows, usable, instead = tokenized, f"{len(tokenized)} usable rows{left}", ""
        if data.packing and len(tokenized):
            rows = PackedData(tokenized, data.sequence_length)
            usable, instead = f"{usable} fill {len(rows)} blocks of {data.sequence_length}", ", or data.packing: false"
        if len(rows) < rows_a_step:
            raise DataError(
                f"{data.source}: {usable}, but one step takes {rows_a_step} "
                f"({train.batch_size_per_gpu} a rank × {train.gradient_accumulation} accumulated × {world_size} ranks)",
                hint="more data, or a smaller train.batch_size_per_gpu, train.gradient_accumulation or number of ranks"
                + instead,
            )
    if data.eval_source or data.eval_split:
        key = "data.eval_source" if data.eval_source else "data.source"
        source, split = data.eval_source or data.source, data.eval_split or data.split
        evaluation = _tokenized(recipe, tokenizer, source, split, key)
    return RecipeDatasets(rows, evaluation)


def _tokenized(recipe: Recipe, tokenizer: Any, source: str, split: str, key: str) -> TokenizedData:
    """The tokenised rows of a source.

    Raises:
        DataError: None of them has a label within the sequence length, or as `read_rows` and `encode`.
    """
    rows = tokenize(read_rows(source, split, key), tokenizer, recipe.data.sequence_length)
    if not len(rows):
        raise DataError(
            f"{source}: none of its {rows.dropped} rows has a token to learn within "
            f"data.sequence_length = {recipe.data.sequence_length}",
            hint=f"raise data.sequence_length; a row has {FORMS}",
        )
    return rows


def _held_out_count(data: DataKeys, rows: int) -> int:
    """How many of the rows `data.eval_share` holds out for evaluation.

    Raises:
        DataError: Less than one row.
    """
    held = round(data.eval_share * rows)
    if data.eval_share and not held:
        raise DataError(
            f"data.eval_share is {data.eval_share:g}, which of the {rows} rows of {data.source} is none",
            hint=f"data.eval_share: {1 / rows:.2g} holds one out; or name other rows: data.eval_source",
        )
    return held


def tokenize(rows: Iterable[Row], tokenizer: Any, sequence_length: int) -> TokenizedData:
    """Tokenise rows in their order.

    Args:
        rows: Rows as `read_rows` gives them.
        tokenizer: A transformers tokenizer.
        sequence_length: Longer rows are cut to this many positions.

    Raises:
        DataError: A row has no known form; the message names file and line.
    """
    data = TokenizedData()
    for row in rows:
        data.add(encode(row.fields, tokenizer, row.where), sequence_length)
    return data
