"""What users would otherwise run: plain training loops, written from the equations."""
