"""Host routes: addresses of single pods of this node, announced one by one."""
