"""Guests of a real libvirtd get and lose endpoints."""
