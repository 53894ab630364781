"""Facts about a model without loading it: its files, its shape, the memory that it takes."""
