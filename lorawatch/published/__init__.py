"""Published benchmark tables: read, and checked against their own arithmetic."""
