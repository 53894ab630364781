"""Compare: which GPUs, and how many."""
