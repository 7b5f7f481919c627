"""What every tier needs of the test process itself.

A shell that starts a run in the background leaves SIGINT ignored, and Python keeps it so: nothing that a test
interrupts would ever end. So the default is put back before anything is started. The marker is here because
tiers import from each other; `tests/fabric/conftest` acts on it.
"""

from __future__ import annotations

import signal

import pytest


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "needs(*programs): programs this test starts; skipped without them")
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
