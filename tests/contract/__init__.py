"""What holds of a whole target, whoever talks to it: each engine, store and device by the same tests."""
