"""NetworkPolicy on this node: which packets of its pods pass, and how the kernel is told."""
