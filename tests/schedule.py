"""The order in which test files begin."""

from __future__ import annotations

LONG_FILES = (
    "test_fast_engine.py",
    "test_training_demo.py",
    "test_resume.py",
    "test_record.py",
    "test_evaluation.py",
    "test_record_sweep.py",
    "test_training_worker.py",
    "test_nf4.py",
    "test_gradient_checkpointing.py",
    "test_screens.py",
)
"""Files of a minute and more on one core, the longest first; with them begun, two workers end at about the same time."""
