"""What runs inside a rank; the only place that imports torch."""

import logging

# On a CPU that it suits, bitsandbytes says at its import, which is PEFT's, that a package for faster inference is missing.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
