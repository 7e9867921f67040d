"""Guests, front ends and neighbours that mean harm: what they did ends with them."""
