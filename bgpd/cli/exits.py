"""The exit codes every command shares, and the exception that carries one to `main`."""

FINE, FAILED, USAGE, NOT_REACHABLE, DEGRADED = 0, 1, 2, 3, 4


class Exit(Exception):
    """Ends the command with `code`; what the operator should read has been printed."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code
