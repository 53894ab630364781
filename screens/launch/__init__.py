"""Launch: a recipe as a form or as YAML, the GPUs, a start."""
