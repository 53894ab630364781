"""Data sets as the Trainer takes them, and the collator that pads and counts."""

from __future__ import annotations

import random
from array import array
from collections.abc import Iterable, Sequence
from copy import copy
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from typing import Any, NamedTuple, Self

import torch
from torch.utils.data import Dataset

from lorawatch.analysis.padding import padding_to_longest
from lorawatch.errors import DataError, RecipeError
from lorawatch.recipe.schema import Data as DataKeys
from lorawatch.recipe.schema import Recipe
from lorawatch.training.batch_counts import BatchCounts
from lorawatch.training.packing import Packing, document_positions
from lorawatch.training.sources import Row, read_rows
from lorawatch.training.tokenization import FORMS, IGNORED, Example, encode

Item = dict[str, torch.Tensor]


class SyntheticData(Dataset[Item]):
    """Random tokens of full length, each row drawn from the seed and its index when it is asked for.

    Args:
        rows: How many there are.
        sequence_length: Positions of each.
        vocabulary: Token ids lie below it.
        seed: Of the recipe.
        begin: Index of the first row.
    """

    def __init__(self, rows: int, sequence_length: int, vocabulary: int, seed: int, begin: int = 0) -> None:
        self._rows, self._length, self._vocabulary, self._seed = rows, sequence_length, vocabulary, seed
        self._begin = begin

    def __len__(self) -> int:
        return self._rows

    def __getitem__(self, index: int) -> Item:
        # torch's generator takes the low 32 bits of a seed only.
        mixed = blake2b(f"{self._seed}/{self._begin + index}".encode(), digest_size=4).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(mixed, "little"))
        ids = torch.randint(self._vocabulary, (self._length,), generator=generator)
        return {"input_ids": ids, "labels": ids}

    @property
    def fingerprint(self) -> str:
        """Equal for equal rows, however many of them: a run that goes on for more steps has the same first ones."""
        return f"synthetic-{self._length}-{self._vocabulary}-{self._seed}"


@dataclass
class TokenizedData(Dataset[Item]):
    """Tokenised rows, packed end to end in two arrays: five bytes a token.

    Attributes:
        cut: Rows that were longer than the sequence length.
        dropped: Rows left out, since no label remained.
        tokens: All positions.
    """

    cut: int = 0
    dropped: int = 0
    _ids: array[int] = field(default_factory=lambda: array("i"))
    _learned: bytearray = field(default_factory=bytearray)
    _ends: array[int] = field(default_factory=lambda: array("q"))

    def add(self, example: Example, sequence_length: int) -> None:
        """Append a row, cut to the sequence length; dropped where the loss would be taken nowhere."""
        ids, learned = example.ids, example.learned
        if len(ids) > sequence_length:
            self.cut += 1
            ids, learned = ids[:sequence_length], learned[:sequence_length]
        if not any(learned[1:]):  # nothing predicts the first token
            self.dropped += 1
            return
        self._ids.extend(ids)
        self._learned.extend(learned)
        self._ends.append(len(self._ids))

    def split_off(self, rows: int, seed: int) -> tuple[TokenizedData, TokenizedData]:
        """The rows in two sets, each in their order here: those that stay, and so many drawn by a seed.

        Equal rows (as a data set may repeat them) can be in both.
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
        return len(self._ids)

    @property
    def lengths(self) -> list[int]:
        """Positions of each row."""
        return [end - begin for begin, end in zip([0, *self._ends], self._ends, strict=False)]

    @property
    def fingerprint(self) -> str:
        """Equal for equal data."""
        digest = blake2b(self._ids.tobytes(), digest_size=8)
        digest.update(self._learned)
        digest.update(self._ends.tobytes())
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> Item:
        end = self._ends[index]
        start = self._ends[index - 1] if index else 0
        ids = torch.tensor(self._ids[start:end], dtype=torch.long)
        learned = torch.frombuffer(self._learned, dtype=torch.bool, count=end - start, offset=start)
        return {"input_ids": ids, "labels": ids.masked_fill(~learned, IGNORED)}


class PackedData(Dataset[Item]):
    """Tokenised rows in blocks of one length, several to a block, with their positions.

    The first token of each has no label: what comes before it in its block is another row.

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
        items = [self.rows[row] for row in self.packing.block(index)]
        for item in items:
            item["labels"][0] = IGNORED
            item["position_ids"] = torch.arange(len(item["labels"]))
        return {name: torch.cat([item[name] for item in items]) for name in items[0]}

    @property
    def fingerprint(self) -> str:
        """Equal for equal rows in the same blocks."""
        return f"{self.rows.fingerprint}-{blake2b(self.packing.layout_bytes(), digest_size=8).hexdigest()}"

    def summary(self, batch_size: int, *, to_longest: bool) -> str:
        """`packed 2,113 rows into 391 blocks of 512: 3.1% padding instead of 47.2% with each row padded to 512`.

        Args:
            batch_size: Rows of a batch.
            to_longest: Rows that are not packed are padded to the longest of their batch, not to the length of a block.
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


class RecipeDatasets(NamedTuple):
    """A recipe's rows: to train on, and to evaluate on where there are any."""

    train: SyntheticData | TokenizedData | PackedData
    evaluation: SyntheticData | TokenizedData | None = None


class Collator:
    """Pads a batch to its longest row and counts its tokens on the CPU.

    A batch without padding gets no attention mask: all positions are real, and the model takes its fastest path. Packed
    rows get none either, but the positions that tell their documents.

    Args:
        pad_id: The id that fills up; padded positions have no label.
        counts: Where the counts go, in the order of the batches.
        packing: How the rows were packed that are.
    """

    def __init__(self, pad_id: int, counts: BatchCounts, packing: Packing | None = None) -> None:
        self._pad_id = pad_id
        self._counts = counts
        self._packing = packing

    def without_counts(self) -> Self:
        """One that makes the same batches, for rows that are not trained on: its counts go nowhere."""
        twin = copy(self)
        twin._counts = BatchCounts()
        return twin

    def __call__(self, items: Sequence[Item]) -> Item:
        if self._packing is not None and "position_ids" in items[0]:
            return self._count(self._fill(items, (len(items), self._packing.length)), items)
        ids = [item["input_ids"] for item in items]
        labels = [item["labels"] for item in items]
        longest = max(len(row) for row in ids)
        nonpad = sum(len(row) for row in ids)
        batch: Item
        if nonpad == longest * len(ids):
            batch = {"input_ids": torch.stack(ids), "labels": torch.stack(labels)}
        else:
            batch = {
                "input_ids": torch.full((len(ids), longest), self._pad_id),
                "attention_mask": torch.zeros((len(ids), longest), dtype=torch.long),
                "labels": torch.full((len(ids), longest), IGNORED),
            }
            for row, (tokens, learned) in enumerate(zip(ids, labels, strict=True)):
                batch["input_ids"][row, : len(tokens)] = tokens
                batch["attention_mask"][row, : len(tokens)] = 1
                batch["labels"][row, : len(tokens)] = learned
        return self._count(batch, items)

    def _fill(self, items: Sequence[Item], shape: tuple[int, int]) -> Item:
        """A batch of this shape, its rows filled from the left; the rest of them, and whole rows, are padding."""
        batch = {"input_ids": torch.full(shape, self._pad_id), "labels": torch.full(shape, IGNORED)}
        for name, rows in batch.items():
            for row, item in enumerate(items):
                rows[row, : len(item[name])] = item[name]
        if self._packing is not None and "position_ids" in items[0]:
            batch["position_ids"] = document_positions(
                [item["position_ids"] for item in items], shape, self._packing.longest
            )
        return batch

    def _count(self, batch: Item, items: Sequence[Item]) -> Item:
        rows, length = batch["labels"].shape
        nonpad = sum(len(item["input_ids"]) for item in items)
        self._counts.put((rows, length), nonpad, int((batch["labels"][:, 1:] != IGNORED).sum()))
        return batch


def build_training_data(
    recipe: Recipe, tokenizer: Any, vocabulary: int, world_size: int
) -> SyntheticData | TokenizedData | PackedData:
    """The rows to train on.

    Raises:
        DataError, RecipeError: As `build_sets`.
    """
    return build_datasets(recipe, tokenizer, vocabulary, world_size).train


def build_datasets(recipe: Recipe, tokenizer: Any, vocabulary: int, world_size: int) -> RecipeDatasets:
    """The rows to train on, and those to evaluate on.

    Raises:
        DataError: Missing, broken, empty, smaller than one step of all ranks, or of such a size that the share to evaluate
            on is no row.
        RecipeError: Random tokens without a number of steps.
    """
    train, data = recipe.train, recipe.data
    rows_a_step = train.batch_size_per_gpu * train.gradient_accumulation * world_size
    rows: SyntheticData | TokenizedData | PackedData
    evaluation: SyntheticData | TokenizedData | None = None
    if data.source == "synthetic":
        if train.steps is None:
            raise RecipeError(
                "train.steps is null, but random tokens have no epoch", hint="set train.steps to a number"
            )
        draw = partial(SyntheticData, sequence_length=data.sequence_length, vocabulary=vocabulary, seed=train.seed)
        rows = draw(train.steps * rows_a_step)
        if held := _held_out_count(data, len(rows)):
            evaluation = draw(held, begin=1 << 40)  # behind every row that a longer training would have
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
    rows = tokenize(read_rows(source, split, key), tokenizer, recipe.data.sequence_length)
    if not len(rows):
        raise DataError(
            f"{source}: none of its {rows.dropped} rows has a token to learn within "
            f"data.sequence_length = {recipe.data.sequence_length}",
            hint=f"raise data.sequence_length; a row has {FORMS}",
        )
    return rows


def _held_out_count(data: DataKeys, rows: int) -> int:
    """How many rows the share to evaluate on is."""
    held = round(data.eval_share * rows)
    if data.eval_share and not held:
        raise DataError(
            f"data.eval_share is {data.eval_share:g}, which of the {rows} rows of {data.source} is none",
            hint=f"data.eval_share: {1 / rows:.2g} holds one out; or name other rows: data.eval_source",
        )
    return held


def tokenize(rows: Iterable[Row], tokenizer: Any, sequence_length: int) -> TokenizedData:
    """Tokenise rows in their order.

    Raises:
        DataError: A row that fits no known form; names file and line.
    """
    data = TokenizedData()
    for row in rows:
        data.add(encode(row.fields, tokenizer, row.where), sequence_length)
    return data
