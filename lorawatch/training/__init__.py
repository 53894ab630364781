"""What runs inside a rank; the only place that imports torch."""
