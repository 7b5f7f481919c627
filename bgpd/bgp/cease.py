"""Lets ExaBGP say that BFD went down. `steady` puts `Peer` in the place of ExaBGP's.

ExaBGP 5.0 ends a session on command in silence where graceful restart was negotiated: the peer then keeps the
routes, as it should when a speaker restarts. When BFD has found the path dead it must not: a NOTIFICATION ends
graceful restart too (RFC 4724 section 4; the peer knows no RFC 8538 from us), and RFC 9384 has the word for it.

Goes once ExaBGP does it itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from exabgp.bgp.message import Notify
from exabgp.reactor import peer

from bgpd.model.bfd import BFD_DOWN, CEASE


class Peer(peer.Peer):  # type: ignore[misc]
    """One session of ExaBGP's. The reactor gives it a turn at each of its rounds."""

    def _main(self) -> Iterator[Any]:
        for action in super()._main():
            yield action
            if self._teardown == BFD_DOWN:  # asked before ExaBGP does, which would close
                raise Notify(CEASE, BFD_DOWN)
