"""What `lorawatch doctor` checks."""
