"""Open vSwitch with DPDK: ports of a bridge that forwards in user space, by way of its database (OVSDB).

``database`` speaks to ovsdb-server, ``rows`` says what stands in it, ``bridge`` asks and orders. ``driver``
has the verbs, ``watcher`` a thread that hears of changes.
"""
