"""Cilium's BGP objects, and what they come to on this node."""
