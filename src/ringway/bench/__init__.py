"""Benchmarks of vhost-user targets, ours and others', by one polling front end.

``plan`` says what is measured and ``samples`` what came of it; ``sides`` and ``fio`` start what is measured,
``run`` measures, ``goals``, ``page`` and ``chart`` read the results. Only ``cli`` imports this.
"""
