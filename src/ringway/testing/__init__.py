"""Public helpers for tests: a vhost-user front end in Python, guests, kernels.

They may import ``vhost_user``'s wire format and ``_core``; nothing but tests and benchmarks imports them.
"""
