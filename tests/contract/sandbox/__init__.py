"""What a target gave up before it serves."""
