"""Frozen linear layers in FP8: what is rounded, by how much, and what stays as it is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from lorawatch.recipe import loading
from lorawatch.training import fp8
from lorawatch.training import model as models
from lorawatch.training.fp8 import FORMAT, Fp8Linear, convert_frozen_linears, quantize_rows


def test_each_row_is_rounded_by_its_own_scale() -> None:
    x = torch.randn(8, 64, generator=torch.Generator().manual_seed(0)) * torch.logspace(-6, 6, 8)[:, None]
    rounded, scale = quantize_rows(x)
    assert rounded.dtype == FORMAT
    assert scale.shape == (8, 1)
    back = rounded.float() * scale
    largest = x.abs().amax(1, keepdim=True)
    # Three bits of mantissa: half a step is a sixteenth; below the format's normal numbers, half of its smallest step.
    assert bool(((back - x).abs() <= x.abs() / 16 + largest * 2**-10 / 448).all())
    torch.testing.assert_close(back.abs().amax(1, keepdim=True), largest)


def test_a_row_of_zeros_stays_zero() -> None:
    rounded, scale = quantize_rows(torch.zeros(2, 16))
    assert bool((rounded.float() * scale == 0).all())


def test_output_and_input_gradient_are_near_the_exact_ones_and_the_weight_gets_none() -> None:
    generator = torch.Generator().manual_seed(0)
    exact = nn.Linear(256, 128).requires_grad_(requires_grad=False)
    layer = Fp8Linear(exact)
    x = torch.randn(2, 5, 256, generator=generator, requires_grad=True)
    upstream = torch.randn(2, 5, 128, generator=generator)
    want, got = exact(x), layer(x)
    assert got.shape == (2, 5, 128)
    (want_gradient,) = torch.autograd.grad(want, x, upstream)
    (got_gradient,) = torch.autograd.grad(got, x, upstream)
    # Two factors, each off by up to a sixteenth, at random: some 4% of the root mean square.
    for a, b in ((got, want), (got_gradient, want_gradient)):
        error = (a - b).pow(2).mean().sqrt() / b.pow(2).mean().sqrt()
        assert 0.005 < error < 0.06, error
    assert not list(layer.state_dict()) or list(layer.state_dict()) == ["bias"]


def tiny(**settings: Any) -> Any:
    recipe = loading.load("tiny", [f"{key}={value}" for key, value in settings.items()])
    plan = models.plan_model(recipe)
    return models.load_model(plan, recipe, torch.device("cpu"))


def test_a_models_frozen_layers_are_converted_and_its_adapters_and_head_are_not() -> None:
    model = tiny()
    before = {name: p.dtype for name, p in model.named_parameters() if p.requires_grad}
    linears = [name for name, m in model.named_modules() if type(m) is nn.Linear and "lora_" not in name]
    head = [name for name in linears if name.endswith("lm_head")]
    assert convert_frozen_linears(model) == len(linears) - len(head)
    assert [n for n, m in model.named_modules() if type(m) is nn.Linear and "lora_" not in n] == head
    assert {name: p.dtype for name, p in model.named_parameters() if p.requires_grad} == before
    ids = torch.arange(3, 35)[None]
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    assert bool(torch.isfinite(loss))
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_the_loss_is_near_the_unquantized_models() -> None:
    ids = torch.arange(3, 35)[None]
    plain, quantized = tiny(), tiny()
    convert_frozen_linears(quantized)
    want, got = plain(input_ids=ids, labels=ids).loss, quantized(input_ids=ids, labels=ids).loss
    assert got.item() == pytest.approx(want.item(), rel=0.01)
    assert got.item() != want.item()


def test_a_layer_whose_sizes_the_kernels_do_not_take_stays() -> None:
    odd = nn.Sequential(nn.Linear(24, 32), nn.Linear(32, 32)).requires_grad_(requires_grad=False)
    assert fp8.convert_frozen_linears(odd) == 1
    assert type(odd[0]) is nn.Linear
    assert type(odd[1]) is Fp8Linear


def test_it_compiles_without_a_break() -> None:
    layer = Fp8Linear(nn.Linear(64, 32).requires_grad_(requires_grad=False))
    x = torch.randn(4, 64, requires_grad=True)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        want, got = layer(x), compiled(x)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(torch.autograd.grad(got.sum(), x), torch.autograd.grad(want.sum(), x))
