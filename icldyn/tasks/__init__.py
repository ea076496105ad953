"""What a prompt is."""
