"""The seams of the core, with the test as its slow path."""
