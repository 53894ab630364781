"""Launch: a recipe as a form or as YAML, the choice of GPUs, and the start."""
