"""What is known of a model without loading it: its files, its shape, the memory that it takes."""
