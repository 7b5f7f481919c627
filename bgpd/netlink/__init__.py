"""The kernel's routing tables and addresses, through pyroute2. Nothing else in the product imports pyroute2."""
