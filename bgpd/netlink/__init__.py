"""What the kernel tells of interfaces, addresses and nf_tables. Nothing else in the product speaks netlink."""
