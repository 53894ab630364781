"""What a screen shows, as plain data: frames of live runs, of replays, and of this machine."""
