"""Routes to the pods of other nodes: straight through the nodes' addresses, or in VXLAN."""
