"""Routes: what this node advertises to whom, and the ExaBGP process that says it."""
