"""Data sets as the Trainer takes them, and the collator that pads and counts."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import torch
from torch.utils.data import Dataset

from lorawatch.errors import DataError, RecipeError
from lorawatch.recipe import Recipe
from lorawatch.training.counts import BatchCounts
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
    """

    def __init__(self, rows: int, sequence_length: int, vocabulary: int, seed: int) -> None:
        self._rows, self._length, self._vocabulary, self._seed = rows, sequence_length, vocabulary, seed

    def __len__(self) -> int:
        return self._rows

    def __getitem__(self, index: int) -> Item:
        # torch's generator takes the low 32 bits of a seed only.
        mixed = blake2b(f"{self._seed}/{index}".encode(), digest_size=4).digest()
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

    @property
    def tokens(self) -> int:
        return len(self._ids)

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


class Collator:
    """Pads a batch to its longest row and counts its tokens on the CPU.

    A batch without padding gets no attention mask: all positions are real, and the model takes its fastest path.

    Args:
        pad_id: The id that fills up; padded positions have no label.
        counts: Where the counts go, in the order of the batches.
    """

    def __init__(self, pad_id: int, counts: BatchCounts) -> None:
        self._pad_id = pad_id
        self._counts = counts

    def __call__(self, items: Sequence[Item]) -> Item:
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
        label_tokens = int((batch["labels"][:, 1:] != IGNORED).sum())
        self._counts.put((len(ids), longest), nonpad, label_tokens)
        return batch


def build_data(recipe: Recipe, tokenizer: Any, vocabulary: int, world_size: int) -> SyntheticData | TokenizedData:
    """The recipe's data set.

    Raises:
        DataError: Missing, broken, empty, or smaller than one step of all ranks.
        RecipeError: Random tokens without a number of steps.
    """
    train = recipe.train
    rows_a_step = train.batch_size_per_gpu * train.gradient_accumulation * world_size
    if recipe.data.source == "synthetic":
        if train.steps is None:
            raise RecipeError(
                "train.steps is null, but random tokens have no epoch", hint="set train.steps to a number"
            )
        rows = train.steps * rows_a_step
        return SyntheticData(rows, recipe.data.sequence_length, vocabulary, train.seed)
    data = tokenize(read_rows(recipe.data.source, recipe.data.split), tokenizer, recipe.data.sequence_length)
    if not len(data):
        raise DataError(
            f"{recipe.data.source}: none of its {data.dropped} rows has a token to learn within "
            f"data.sequence_length = {recipe.data.sequence_length}",
            hint=f"raise data.sequence_length; a row has {FORMS}",
        )
    if len(data) < rows_a_step:
        raise DataError(
            f"{recipe.data.source}: {len(data)} usable rows, but one step takes {rows_a_step} "
            f"({train.batch_size_per_gpu} a rank × {train.gradient_accumulation} accumulated × {world_size} ranks)",
            hint="more data, or a smaller train.batch_size_per_gpu, train.gradient_accumulation or number of ranks",
        )
    return data


def tokenize(rows: Iterable[Row], tokenizer: Any, sequence_length: int) -> TokenizedData:
    """Tokenise rows in their order.

    Raises:
        DataError: A row that fits no known form; names file and line.
    """
    data = TokenizedData()
    for row in rows:
        data.add(encode(row.fields, tokenizer, row.where), sequence_length)
    return data
