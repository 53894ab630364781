"""What runs inside a rank; the only place that imports torch."""

import logging

# On some CPUs bitsandbytes, which PEFT imports, logs that a package for faster inference is missing.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
