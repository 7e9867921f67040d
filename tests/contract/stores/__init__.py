"""Disks that fail or hang."""
