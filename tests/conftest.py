"""What every tier needs of the test process itself.

A shell that starts a run in the background leaves SIGINT ignored, and Python keeps it so: nothing that a test
interrupts would ever end. So the default is put back before anything is started.
"""

from __future__ import annotations

import signal


def pytest_configure() -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
