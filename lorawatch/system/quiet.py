"""Variables under which the training libraries say nothing of their own and wait for no network."""

from __future__ import annotations

QUIET = {
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_ETAG_TIMEOUT": "5",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
}
"""Set only where the user has not."""
