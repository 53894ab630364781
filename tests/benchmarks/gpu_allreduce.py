"""What averaging the gradients of one step takes over so many ranks, where all of them are there at once: three ways.

    python tests/benchmarks/gpu_allreduce.py [--ranks 2] [--cpu] [--adapter adapter_model.safetensors] [--step-ms 58]

DDP as it comes (bucket and back), DDP with gradients as views of its buckets, and one flat all-reduce, as the fast engine
does it. On GPUs each is timed between two events behind a kernel that only waits, so that the host is ahead as it is in
training. By default the gradients of rank 16 on q_proj and v_proj of an 8B Llama, 27 MB.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

LLAMA_8B = [shape for _ in range(32) for shape in ((16, 4096), (4096, 16), (16, 4096), (1024, 16))]
ROUNDS, WARM_UP = 30, 8


def measure(ranks: int, *, cpu: bool, adapter: Path | None = None, timeout_s: float = 120) -> dict[str, Any]:
    """Time the three ways in processes of their own.

    Raises:
        RuntimeError: They failed; with the end of what they said.
    """
    done = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--nnodes=1", f"--nproc-per-node={ranks}",
            "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", "--local-addr=127.0.0.1", __file__, "--rank",
            *(["--cpu"] if cpu else []), *(["--adapter", str(adapter)] if adapter else []),
        ],
        capture_output=True, text=True, timeout=timeout_s, check=False,
    )  # fmt: skip
    found = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not found:
        raise RuntimeError(f"exit status {done.returncode}: {done.stderr[-1500:]}")
    result: dict[str, Any] = json.loads(found[-1].removeprefix("RESULT "))
    return result


def words(result: dict[str, Any], step_s: float | None = None) -> list[str]:
    """A line a way, each as a share of a step's time where that is known."""
    size = result["bytes"] / 1e6
    lines = [
        f"gradients of {result['tensors']} tensors, {size:.1f} MB, over {result['ranks']} ranks ({result['backend']}):"
    ]
    buckets = ", ".join(f"{b / 1e6:.1f}" for b in result["buckets"])
    names = {
        "ddp": f"DDP, {len(result['buckets'])} buckets of {buckets} MB",
        "views": "DDP with gradients as bucket views",
        "flat": "one flat all-reduce (the fast engine)",
        "bare": "  of which the all-reduce itself",
    }
    for way, name in names.items():
        seconds = result[way]
        share = f"  {100 * seconds / step_s:5.2f}% of a step of {1e3 * step_s:.1f} ms" if step_s else ""
        lines.append(f"  {name:<44} {1e3 * seconds:8.3f} ms{share}")
    factor = 2 * (result["ranks"] - 1) / result["ranks"]
    lines.append(f"  {'bus bandwidth of the flat one':<44} {factor * result['bytes'] / result['bare'] / 1e9:8.1f} GB/s")
    return lines


def shapes(adapter: str | None) -> list[tuple[int, ...]]:
    if adapter is None:
        return list(LLAMA_8B)
    from safetensors import safe_open

    with safe_open(adapter, "pt") as file:
        return [tuple(file.get_slice(name).get_shape()) for name in file.keys()]  # noqa: SIM118  not a dict


def rank(cpu: bool, adapter: str | None) -> None:
    import os

    import torch
    import torch.distributed as dist
    from torch import nn
    from torch.nn.parallel import DistributedDataParallel

    from lorawatch.training.reduction import FlatAllReduce

    local = int(os.environ["LOCAL_RANK"])
    device = torch.device("cpu") if cpu else torch.device("cuda", local)
    if not cpu:
        torch.cuda.set_device(device)
    dist.init_process_group("gloo" if cpu else "nccl", device_id=None if cpu else device)
    ranks = dist.get_world_size()

    class Ready(torch.autograd.Function):
        """Hands out gradients that are there already, as a replayed graph does."""

        @staticmethod
        def forward(ctx: Any, gradients: list[Any], *parameters: Any) -> Any:
            ctx.gradients = gradients
            return torch.zeros((), device=device)

        @staticmethod
        def backward(ctx: Any, *upstream: Any) -> Any:
            return None, *torch._foreach_mul(ctx.gradients, upstream[0])

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.held = nn.ParameterList(torch.randn(shape, device=device) for shape in shapes(adapter))
            self.gradients = [torch.randn_like(p) for p in self.held]

        def forward(self) -> Any:
            return Ready.apply(self.gradients, *self.held)

    def timed(work: Any) -> float:
        times = []
        pulse = torch.zeros(1, device=device)
        for _ in range(WARM_UP + ROUNDS):
            if cpu:
                dist.barrier()
                began = time.perf_counter()
                work()
                times.append(time.perf_counter() - began)
                continue
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda._sleep(30_000_000)  # about 15 ms, in which the host queues the rest
            dist.all_reduce(pulse)  # no GPU begins before the others
            start.record()
            work()
            end.record()
            torch.cuda.synchronize()
            times.append(start.elapsed_time(end) / 1e3)
        return median(times[WARM_UP:])

    def backward(model: Any) -> None:
        model.zero_grad()
        model().backward()

    plain = Model()
    reduce = FlatAllReduce(plain.held, ranks)
    nothing = timed(lambda: backward(plain))

    def flat() -> None:
        backward(plain)
        reduce()

    piece = torch.randn(sum(p.numel() for p in plain.held), device=device)
    result = {
        "ranks": ranks, "backend": dist.get_backend(), "bytes": 4 * len(piece), "tensors": len(plain.held),
        "bare": timed(lambda: dist.all_reduce(piece)), "flat": timed(flat) - nothing,
    }  # fmt: skip
    views = DistributedDataParallel(Model(), gradient_as_bucket_view=True)
    result["views"] = timed(lambda: backward(views)) - nothing
    ddp = DistributedDataParallel(Model())
    result["ddp"] = timed(lambda: backward(ddp)) - nothing
    said = ddp._get_ddp_logging_data()
    sizes = str(said.get("rebuilt_bucket_sizes") or said.get("bucket_sizes") or "")
    result["buckets"] = [int(s) for s in sizes.replace(" ", "").split(",") if s]
    if dist.get_rank() == 0:
        print(f"RESULT {json.dumps(result)}", flush=True)
    dist.barrier()
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--adapter", default=None)
    parser.add_argument("--step-ms", type=float, default=None)
    parser.add_argument("--rank", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.rank:
        rank(given.cpu, given.adapter)
        return
    result = measure(given.ranks, cpu=given.cpu, adapter=given.adapter and Path(given.adapter))
    print("\n".join(words(result, given.step_ms and given.step_ms / 1e3)))


if __name__ == "__main__":
    main()
