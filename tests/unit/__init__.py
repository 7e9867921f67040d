"""What needs no root and no second process: a minute in all."""
