"""What attention, a training step and the data pipeline cost."""
