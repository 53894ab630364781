"""Which lorawatch this is; here, so that the package's root needs nothing to be loaded for it."""

__version__ = "0.1.0"
