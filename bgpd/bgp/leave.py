"""Decides when peers that everything was withdrawn from have been sent all of it. Pure, standard library only.

ExaBGP acknowledges a withdrawal when it has queued it, and tells nobody when it has left; but it counts the UPDATEs
that it has sent. End-of-RIB counts as one and leaves after everything else. So once that was asked for, all has left
when a peer's count has moved and then stands still.

`stop` asks without a daemon, about every peer; `reconcile` about those whose sessions are taken out.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Set

from bgpd.model.prefix import Address, parse_address

QUESTION = "show neighbor json"
LOOKS = 3  # so often in a row the counts must stand still
LOOK_S = 0.05


def updates_sent(answer: Iterable[str]) -> dict[Address, int]:
    """From the answer to `QUESTION`: how many UPDATEs every peer that is up was sent in its present session."""
    return {
        parse_address(neighbor["peer"]["address"]): neighbor["messages"]["sent"]["update"]
        for neighbor in json.loads("".join(answer))
        if neighbor["fsm"] == "ESTABLISHED"
    }


class Leave:
    """`before` is what had been sent when the first of these peers was told anything; those not in it are down."""

    def __init__(self, peers: Set[Address], before: Mapping[Address, int]) -> None:
        self._before = {peer: before[peer] for peer in peers & before.keys()}
        self._sent: Mapping[Address, int] = before
        self._stood = 0

    def complete(self, sent: Mapping[Address, int], *, held: bool = False) -> bool:
        """One more look: whether everything has left ExaBGP, to all whose sessions last. `held`: but no further."""
        still = all(self._before[peer] < sent[peer] == self._sent.get(peer) for peer in self.present(sent))
        self._stood = self._stood + 1 if still and not held else 0
        self._sent = sent
        return self._stood >= LOOKS

    def present(self, sent: Mapping[Address, int]) -> Set[Address]:
        """Those that were up before and still are."""
        return self._before.keys() & sent.keys()

    def fallen(self, sent: Mapping[Address, int]) -> Set[Address]:
        """Those that were up before and are not any more."""
        return self._before.keys() - sent.keys()
