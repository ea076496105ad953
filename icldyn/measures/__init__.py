"""What is read off the weights: plain functions params -> array."""
