"""The light process that supervises one run and records it; holds no torch."""
