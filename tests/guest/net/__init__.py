"""Guests whose network is a real Open vSwitch with DPDK."""
