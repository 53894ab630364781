"""Stand-ins for devices that the test machine lacks."""
