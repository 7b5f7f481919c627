"""Values that every room shares: frozen, without I/O, without behaviour beyond their own invariants."""
