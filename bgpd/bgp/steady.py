"""Runs ExaBGP with timers that no step of the wall clock can move.

ExaBGP 5.0 keeps its hold, keepalive and reconnect timers by `time.time()`: a step forward by more than the hold
time ends every session (4/0), and after a step back no keepalive is sent until the clock has caught up, so that
every peer gives up. A machine without a battery-backed clock, or one resumed from a snapshot, makes such a step
soon after its start. `launch` names this file in the speaker's command line. Goes once ExaBGP does it itself.
"""

from __future__ import annotations

import sys
import time
from types import SimpleNamespace

from exabgp.application.main import main
from exabgp.bgp import timer
from exabgp.reactor import delay

if __name__ == "__main__":
    timer.time = delay.time = SimpleNamespace(time=time.monotonic)
    sys.exit(main())
