"""What is, rather than happens: by part of the daemon, its figures and the metrics that they become."""
