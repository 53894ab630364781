"""What the GPUs and the host report. The rest of lorawatch sees `driver.GpuDriver`, of whatever vendor."""
