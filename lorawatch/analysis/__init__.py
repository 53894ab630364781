"""Pure arithmetic on plain data: throughput, energy, scaling; no I/O."""
