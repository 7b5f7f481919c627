"""What operators and monitoring see: log lines, metrics, HTTP, the command line's socket, readiness."""
