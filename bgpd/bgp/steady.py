"""Runs ExaBGP with some faults put right. `launch` names this file in the speaker's command line.

ExaBGP 5.0 keeps its hold, keepalive and reconnect timers by `time.time()`: a step forward by more than the hold
time ends every session (4/0), and after a step back no keepalive is sent until the clock has caught up, so that
every peer gives up. A machine without a battery-backed clock, or one resumed from a snapshot, makes such a step
soon after its start.

When it dials a peer again is put right too, and told in `redial`; what its listening sockets lack, in `gtsm` and
`scoped`; what
it does for every command and need not, in `turns`; what it leaves unsaid when BFD went down, in `cease`.

Each goes once ExaBGP does it itself.
"""

from __future__ import annotations

import sys
import time
from types import SimpleNamespace

from exabgp.application.main import main
from exabgp.bgp import timer
from exabgp.reactor import loop, peer

from bgpd.bgp import cease, scoped
from bgpd.bgp.redial import Redial
from bgpd.bgp.turns import Turns

if __name__ == "__main__":
    timer.time = SimpleNamespace(time=time.monotonic)
    peer.Delay = Redial
    loop.Listener = scoped.Listener
    loop.ASYNC = Turns
    loop.Peer = cease.Peer
    sys.exit(main())
