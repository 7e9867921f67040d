"""Targets that die under a load, and what they leave behind."""
