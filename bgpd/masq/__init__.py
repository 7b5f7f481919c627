"""Masquerade: which pod traffic leaves the node with the pod's own address, and which with the node's."""
