"""What can be seen of service addresses in a running daemon: its part of `bgpd status`, the figures for /metrics.

Reads and changes nothing. How a metric is called is decided by `observe.samples`.
"""

from __future__ import annotations

from typing import Any

from bgpd.observe.samples.services import Services
from bgpd.services.plan import State
from bgpd.services.servicing import Servicing


class Sight:
    """Of one `servicing`."""

    def __init__(self, servicing: Servicing) -> None:
        self._servicing = servicing

    def status(self) -> dict[str, Any]:
        """How many addresses there are, by what became of them."""
        return {"addresses": self._counted()}

    def figures(self) -> Services:
        """What /metrics shows."""
        return Services(self._counted())

    def _counted(self) -> dict[str, int]:
        states = self._servicing.states
        return {state.value: states[state] for state in State}
