"""Peak memory of the reference engine on a GPU, configuration by configuration, beside the estimate; no network.

    python tests/benchmarks/gpu_memory.py [--device 0] [--half 0|1] [--only TEXT] [--dry]
    python tests/benchmarks/gpu_memory.py --ranks 2            a few configurations under torchrun, DDP

Each configuration trains a few steps in a process of its own, on random weights. Prints a JSON line each and a table at
the end, and writes the list to $OUT/gpu_memory.json (with the half or the ranks in its name). A configuration that runs
out of memory is a result. `--dry` runs tiny shapes on the CPU: it measures nothing, it shows that the script works.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from child import result_of, tell

from lorawatch.analysis.memory import GIB, Workload, estimate, verdict
from lorawatch.models import memory
from lorawatch.recipe import loading, schema

QV = ("q_proj", "v_proj")
ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

_LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "rms_norm_eps": 1.0e-5, "bos_token_id": 1,
    "eos_token_id": 2, "max_position_embeddings": 131072,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
}  # fmt: skip
# Llama 3.2's shapes, as config.json files in a folder.
FOLDERS: dict[str, dict[str, Any]] = {
    "llama-1b": {
        **_LLAMA, "vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "tie_word_embeddings": True,
    },
    "llama-3b": {
        **_LLAMA, "vocab_size": 128256, "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28,
        "num_attention_heads": 24, "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": True,
    },
}  # fmt: skip
HUB_IDS = {
    "llama-8b": "NousResearch/Meta-Llama-3.1-8B-Instruct",
    "smollm2-135m": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "tiny": "tiny-llama",
}


@dataclass(frozen=True)
class Case:
    """A configuration to measure."""

    model: str
    batch: int
    length: int
    rank: int
    targets: tuple[str, ...] = QV
    checkpointing: bool = False
    padded: bool = False
    dtype: str = "bfloat16"
    accumulation: int = 1
    ranks: int = 1

    @property
    def title(self) -> str:
        words = [self.model, f"{self.batch}×{self.length}", f"r{self.rank}", "q,v" if self.targets == QV else "all"]
        words += ["checkpointing"] * self.checkpointing + ["padded"] * self.padded
        words += [self.dtype] * (self.dtype != "bfloat16")
        words += [f"accumulation {self.accumulation}"] * (self.accumulation > 1)
        return " ".join(words + [f"{self.ranks} ranks"] * (self.ranks > 1))

    def recipe(self, folders: Path) -> schema.Recipe:
        name = HUB_IDS.get(self.model) or str(folders / self.model)
        return loading.load("exxact-8b", [
            f"model.name={name}", "model.weights=random", f"model.dtype={self.dtype}", f"lora.rank={self.rank}",
            f"lora.targets=[{', '.join(self.targets)}]", f"data.sequence_length={self.length}", "train.steps=4",
            f"train.batch_size_per_gpu={self.batch}", f"train.gradient_accumulation={self.accumulation}",
            f"train.gradient_checkpointing={str(self.checkpointing).lower()}",
        ])  # fmt: skip

    def workload(self, folders: Path) -> Workload:
        return replace(memory.workload(self.recipe(folders), self.ranks), padded=self.padded)


# Neighbours go to different halves, so that each half has about as much to do.
CASES = (
    Case("llama-8b", 2, 512, 16), Case("llama-8b", 8, 512, 16),
    Case("llama-8b", 2, 512, 16, checkpointing=True), Case("llama-8b", 4, 512, 64, ALL),
    Case("llama-8b", 1, 2048, 16, ALL), Case("llama-8b", 8, 1024, 8, ALL, checkpointing=True),
    Case("llama-8b", 1, 256, 8), Case("llama-8b", 4, 2048, 16, checkpointing=True),
    Case("llama-8b", 9, 1024, 16), Case("llama-8b", 10, 1024, 16),
    Case("llama-8b", 12, 1024, 16), Case("llama-8b", 4, 1024, 16, ALL),
    Case("llama-3b", 2, 512, 16), Case("llama-3b", 4, 1024, 16, ALL),
    Case("llama-3b", 4, 1024, 64, ALL, checkpointing=True), Case("llama-3b", 8, 1024, 16),
    Case("llama-1b", 8, 512, 16), Case("llama-1b", 4, 2048, 64, ALL),
    Case("llama-1b", 8, 2048, 16, checkpointing=True), Case("llama-1b", 1, 256, 8),
    Case("smollm2-135m", 8, 512, 16, ALL), Case("smollm2-135m", 8, 2048, 16),
    Case("smollm2-135m", 4, 1024, 64, checkpointing=True), Case("smollm2-135m", 2, 256, 16),
    Case("llama-8b", 2, 512, 16, padded=True), Case("llama-1b", 4, 1024, 16, padded=True),
    Case("smollm2-135m", 8, 512, 16, ALL, dtype="float32"), Case("llama-8b", 2, 512, 64, ALL, accumulation=2),
)  # fmt: skip
DDP_CASES = (("llama-8b", 2, 512, 16, QV), ("llama-8b", 2, 512, 64, ALL), ("llama-1b", 8, 512, 16, QV))
DRY_CASES = (
    Case("tiny", 2, 32, 4), Case("tiny", 2, 32, 4, ALL, checkpointing=True), Case("tiny", 2, 48, 4, padded=True),
    Case("tiny", 2, 32, 4, dtype="float32", accumulation=2),
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", type=int, default=0)
    parser.add_argument("--half", type=int, choices=(0, 1))
    parser.add_argument("--only", default="", help="configurations whose title contains this")
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--dry", action="store_true")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--wait", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        measure_one(json.loads(options.one), options.dry, options.wait)
        return
    cases = DRY_CASES if options.dry else CASES
    if options.ranks > 1:
        wanted = [(c.model, c.batch, c.length, c.rank, c.targets) for c in DRY_CASES[:2]] if options.dry else DDP_CASES
        cases = tuple(Case(*fields, ranks=options.ranks) for fields in wanted)
    cases = tuple(c for c in cases if options.only in c.title)
    if options.half is not None:
        cases = cases[options.half :: 2]
    with tempfile.TemporaryDirectory() as folder:
        folders = Path(folder)
        for name, config in FOLDERS.items():
            (folders / name).mkdir()
            (folders / name / "config.json").write_text(json.dumps(config))
        results = [judged(case, result, folders) for case, result in measured(cases, folders, options)]
    suffix = "" if options.half is None else f"_{options.half}"
    suffix += f"_{options.ranks}ranks" if options.ranks > 1 else ""
    out = Path(os.environ.get("OUT", ".")) / f"gpu_memory{suffix}.json"
    if options.dry:
        out = Path(tempfile.gettempdir()) / out.name
    out.write_text(json.dumps(results, indent=1) + "\n")
    table(results)
    print(f"written to {out}")


def measured(cases: tuple[Case, ...], folders: Path, options: argparse.Namespace) -> Any:
    """Each configuration with its result. The next process imports its libraries while one measures: it touches the GPU
    only when told to."""
    children = [None] * len(cases)

    def child(index: int) -> Any:
        if index < len(cases) and children[index] is None:
            children[index] = start(cases[index], folders, options)
        return children[index] if index < len(cases) else None

    for index, case in enumerate(cases):
        process = child(index)
        began = time.monotonic()
        if case.ranks == 1:
            process.stdin.write(b"go\n")
            process.stdin.flush()
            child(index + 1)
        result = result_of(process, 240)
        result.pop("stderr", None)
        result["wall_s"] = round(time.monotonic() - began, 1)
        yield case, result


def start(case: Case, folders: Path, options: argparse.Namespace) -> subprocess.Popen[bytes]:
    """The process (or, of several ranks, torchrun) that measures one configuration."""
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    # Importing must not make a CUDA context while another process measures.
    environment = {**os.environ, **offline, "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
    command = [sys.executable]
    if case.ranks > 1:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command += ["-m", "torch.distributed.run", f"--nproc-per-node={case.ranks}", f"--master-port={port}"]
    elif not options.dry:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        device = visible.split(",")[options.device] if visible else str(options.device)
        environment["CUDA_VISIBLE_DEVICES"] = device
    command += [__file__, "--one", json.dumps({"case": asdict(case), "folders": str(folders)})]
    command += ["--dry"] * options.dry + ["--wait"] * (case.ranks == 1)
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, env=environment)


def measure_one(asked: dict[str, Any], dry: bool, wait: bool) -> None:
    """In a process of its own: what lorawatch.training.trainer.train does on a rank, and what it took."""
    import torch
    from transformers import set_seed
    from transformers.utils import logging as transformers_logging

    from lorawatch.run.directory import RunDir
    from lorawatch.run.journal import JournalTail
    from lorawatch.run.records import Step
    from lorawatch.training import model as models
    from lorawatch.training.batch_counts import BatchCounts
    from lorawatch.training.callback import StepCallback
    from lorawatch.training.collator import Collator
    from lorawatch.training.data import build_training_data
    from lorawatch.training.observer import Observer
    from lorawatch.training.rank_info import RankInfo
    from lorawatch.training.reference_trainer import ReferenceTrainer, training_arguments

    case = Case(**{**asked["case"], "targets": tuple(asked["case"]["targets"])})
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    if wait:
        sys.stdin.buffer.readline()
    rank_info = RankInfo.from_environment()
    device = torch.device("cpu") if dry else torch.device("cuda", rank_info.local_rank)
    nvml = Nvml(None if dry else device.index)
    result: dict[str, Any] = {"nvml_before": nvml.used()}

    class Collating(Collator):
        """One position of the batch is padding, where asked for: attention takes a mask."""

        def __call__(self, items: Any) -> Any:
            batch = super().__call__(items)
            if case.padded:
                mask = torch.ones_like(batch["input_ids"])
                mask[0, -1] = 0
                batch["attention_mask"] = mask
            return batch

    with tempfile.TemporaryDirectory() as folder:
        run = RunDir(Path(folder))
        observer = Observer(run, rank_info).start()
        try:
            if not dry:
                torch.cuda.set_device(device)
                torch.zeros(1, device=device)
                result["nvml_context"] = nvml.used()
                result["gpu"], result["total"] = torch.cuda.get_device_name(device), nvml.total()
            recipe = case.recipe(Path(asked["folders"]))
            arguments = training_arguments(recipe, run.checkpoints, device)
            set_seed(0)
            plan = models.plan_model(recipe)
            models.check_memory(plan, device)
            data = build_training_data(recipe, None, plan.vocabulary, rank_info.world_size)
            model = models.load_model(plan, recipe, device)
            if not dry:
                result["built_allocated"] = torch.cuda.memory_allocated(device)
                result["built_reserved"] = torch.cuda.memory_reserved(device)
            set_seed(0)
            counts = BatchCounts()
            trainer = ReferenceTrainer(
                model=model, args=arguments, train_dataset=data, data_collator=Collating(0, counts),
                callbacks=[StepCallback(observer=observer, counts=counts, facts=plan.facts)],
                fingerprint=data.fingerprint,
            )  # fmt: skip
            trainer.train()
        except torch.cuda.OutOfMemoryError as error:
            result["oom"] = str(error).splitlines()[0][:300]
        if not dry:
            stats = torch.cuda.memory_stats(device)
            result |= {
                "allocated": torch.cuda.max_memory_allocated(device), "reserved": torch.cuda.max_memory_reserved(device),
                "reserved_at_end": torch.cuda.memory_reserved(device), "nvml_at_end": nvml.used(),
                "retries": stats["num_alloc_retries"], "segments_peak": stats["segment.all.peak"],
                "inactive_split_peak": stats["inactive_split_bytes.all.peak"],
            }  # fmt: skip
        observer.close()
        journal = JournalTail(run.rank_journal(rank_info.rank)).records()
        steps = [line for line in journal if isinstance(line, Step)]
        result["steps"] = len(steps)
        result["step_allocated"] = [s.memory_allocated_bytes for s in steps]
        result["step_reserved"] = [s.memory_reserved_bytes for s in steps]
        result["losses"] = [round(s.loss, 4) if s.loss is not None else None for s in steps]
    result["versions"] = f"torch {torch.__version__}"
    if rank_info.rank == 0:
        tell(result)
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


class Nvml:
    """NVML's figures of the GPU of a torch device; None where they cannot be had."""

    def __init__(self, index: int | None) -> None:
        self._handle: Any = None
        if index is None:
            return
        try:
            import pynvml

            pynvml.nvmlInit()
            visible = os.environ.get("CUDA_VISIBLE_DEVICES")
            name = visible.split(",")[index] if visible else str(index)
            by_uuid = name.startswith(("GPU-", "MIG-"))
            self._handle = (
                pynvml.nvmlDeviceGetHandleByUUID(name) if by_uuid else pynvml.nvmlDeviceGetHandleByIndex(int(name))
            )
            self._read = pynvml.nvmlDeviceGetMemoryInfo
        except Exception as error:
            print(f"no NVML: {error}", file=sys.stderr)

    def used(self) -> int | None:
        """Used bytes."""
        return None if self._handle is None else int(self._read(self._handle).used)

    def total(self) -> int | None:
        """All bytes."""
        return None if self._handle is None else int(self._read(self._handle).total)


def judged(case: Case, result: dict[str, Any], folders: Path) -> dict[str, Any]:
    """A result beside its estimate; printed as a JSON line."""
    needed = estimate(case.workload(folders))
    line: dict[str, Any] = {
        "title": case.title, **asdict(case), "measured": result, "estimated": needed.breakdown(),
        "estimated_allocated": needed.allocated_bytes, "estimated_reserved": needed.reserved_bytes,
        "estimated_device": needed.device_bytes, "moment": needed.moment,
        "verdict": verdict(needed, result.get("total") or 80 * GIB).verdict,
    }  # fmt: skip
    print(json.dumps(line), flush=True)
    return line


def table(results: list[dict[str, Any]]) -> None:
    """Measured and estimated GiB, error in percent of the measured."""
    print(f"{'configuration':52} {'allocated':>18} {'reserved':>24} {'NVML':>24}  verdict")
    worst = 0.0
    for line in results:
        seen = line["measured"]
        if seen.get("error") or seen.get("oom"):
            what = "out of memory" if seen.get("oom") else "ERROR " + seen["error"].strip().splitlines()[-1][:60]
            print(f"{line['title']:52} {what}, estimated {line['estimated_device'] / GIB:.2f}: {line['verdict']}")
            continue
        cells = []
        for mine, theirs in (
            ("estimated_allocated", "allocated"), ("estimated_reserved", "reserved"), ("estimated_device", "nvml_at_end"),
        ):  # fmt: skip
            value = seen.get(theirs)
            off = None if value is None else line[mine] / value - 1
            if theirs == "reserved" and off is not None:
                worst = max(worst, abs(off))
            cells.append(f"{'—' if value is None else f'{value / GIB:.2f}'} {line[mine] / GIB:.2f} "
                         f"{'—' if off is None else f'{off:+.1%}'}")  # fmt: skip
        print(f"{line['title']:52} {cells[0]:>18} {cells[1]:>24} {cells[2]:>24}  {line['verdict']}")
    print(f"worst error of reserved memory: {worst:.1%} (bound 5%)")


if __name__ == "__main__":
    main()
