"""Benchmarks of vhost-user targets, ours and others', by one polling front end.

``plan`` says what is measured, ``sides`` starts what is measured, ``run`` measures. Only ``cli`` imports
this.
"""
