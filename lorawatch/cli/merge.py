"""`lorawatch merge`: a run's model as plain weights."""

from __future__ import annotations

import shlex
from pathlib import Path

import click
import msgspec

from lorawatch.cli.child import run_module
from lorawatch.errors import LorawatchError, UsageError
from lorawatch.run.adapters import recipe_of, refuse_random, require_adapter
from lorawatch.run.directory import RunDir
from lorawatch.run.requests import AdapterChoice, MergeReport, MergeRequest
from lorawatch.system.user_files import expanded
from lorawatch.text.numbers import gib
from lorawatch.text.sanitize import clean, encodable, json_text


@click.command()
@click.argument("run")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--adapter",
    type=click.Choice(["last", "best"]),
    default="last",
    help="The adapter at the run's end (default), or the one with the lowest evaluation loss.",
)
@click.option(
    "--dtype", type=click.Choice(["bfloat16", "float16", "float32"]), help="Number format (default: the base weights')."
)
@click.option("--force", is_flag=True, help="Replace a model that is in DIR; merge into random weights, too.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def merge(run: str, folder: Path, adapter: AdapterChoice, dtype: str | None, force: bool, as_json: bool) -> int:
    """Write the model that RUN (an id, its beginning, a name, or `last`) tuned into DIR, its adapter merged.

    DIR gets safetensors, config, tokenizer and chat template as transformers saves them. What was written is read back and
    compared with base and adapter before DIR appears.
    """
    tuned_run = RunDir.find(run)
    recipe = recipe_of(tuned_run)
    require_adapter(tuned_run, adapter)
    refuse_random(tuned_run, recipe, "the merged model", force=force)
    if encodable(str(folder)) != str(folder):
        raise UsageError(f"{folder} has a name that is no UTF-8", hint="give a folder whose name is UTF-8 text")
    request = MergeRequest(folder=str(expanded(str(folder)).resolve()), adapter=adapter, dtype=dtype, force=force)
    code, out = run_module(
        "lorawatch.training.merge",
        [str(tuned_run.root), msgspec.json.encode(request).decode()],
        given=b"",
        capture=True,
    )
    if code:
        return code
    try:
        report = msgspec.json.decode(out.strip().rpartition(b"\n")[2], type=MergeReport)
    except msgspec.MsgspecError as error:
        raise LorawatchError(f"the merge ended without a report: {error}") from None
    if as_json:
        click.echo(json_text(report))
        return 0
    for name, value in _lines(report):
        click.echo(f"{name:<14} {value}")
    return 0


def _lines(report: MergeReport) -> list[tuple[str, str]]:
    """The report for people, and how it is used."""
    place = clean(report.folder)
    quoted, gguf = shlex.quote(place), shlex.quote(f"{place}.gguf")
    which = f"the {report.adapter} adapter" + (f" (step {report.step})" if report.step is not None else "")
    lines = [
        ("merged", f"{which} of run {report.run_id} into {place}"),
        (
            "model",
            f"{clean(report.model)}   {report.parameters:,} weights in {report.dtype}   {gib(report.size_bytes)}",
        ),
    ]
    if report.unpacked_from:
        note = "is quantised: the merged weights are its dequantised ones, not the original's"
        lines.append(("dequantised", f"{clean(report.unpacked_from)} {note}"))
    back = (
        f"logits within {report.largest_difference:.2g} of base + adapter's, {report.relative_difference:.2g} relative"
    )
    explained = (
        f"rounding allows {report.allowed_difference:.2g}; the adapter changed them by {report.adapter_difference:.2g}"
    )
    lines += [
        ("read back", f"{back} ({explained})"),
        ("vLLM", f"vllm serve {quoted}"),
        ("llama.cpp", f"python convert_hf_to_gguf.py {quoted} --outfile {gguf} && llama-cli -m {gguf}"),
    ]
    return lines
