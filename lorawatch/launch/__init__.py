"""How workers are started: under torchrun, or as the user's own command."""
