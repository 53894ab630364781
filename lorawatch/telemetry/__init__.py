"""What the devices say: NVML and the host."""
