"""Live: what runs now."""
