"""Listening on link-local addresses (RFC 4007), which ExaBGP 5.0 cannot. `steady` puts it in.

Such an address may be on any interface, so the kernel wants to be told which one is meant before it binds a socket to
it. ExaBGP knows a neighbor's `source-interface`, and minds it when it dials only: a peer that dials us is refused.
Goes once ExaBGP does it itself.
"""

from __future__ import annotations

import socket
from typing import Any

from exabgp.reactor.network.error import NetworkError
from exabgp.reactor.network.tcp import bind_to_device

from bgpd.bgp import gtsm


class Listener(gtsm.Listener):
    """With each socket tied to the interface of the neighbors that it is for, if they have one."""

    def _new_socket(self, ip: Any) -> socket.socket:
        """The last thing before the socket is bound."""
        made: socket.socket = super()._new_socket(ip)
        neighbors = self._reactor.configuration.neighbors.values()
        interface = next((it["source-interface"] for it in neighbors if it["md5-ip"] == ip), None)
        if interface:
            try:
                bind_to_device(made, interface)
            except NetworkError:
                made.close()
                raise
        return made
