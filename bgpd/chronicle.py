"""What the daemon tells in its log about what became of it: a line for each change, none for what stays.

It keeps what it told last, of each subject, and decides what is news and how loud it is. Rounds of the reconcilers
have a log of their own (`observe.log`); nothing here changes anything.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from bgpd.bgp import flaps, view
from bgpd.bgp.health import Health
from bgpd.bgp.plan import Drain
from bgpd.config.restart import Pending
from bgpd.console import ConfigState
from bgpd.kube.feed import SourceState, SourceStatus
from bgpd.model.bfd import BfdState, State
from bgpd.model.bgp import SpeakerState
from bgpd.model.brief import brief
from bgpd.model.fault import Fault
from bgpd.model.masq import Reading
from bgpd.model.node import Node
from bgpd.model.prefix import Address
from bgpd.observe import log


class Chronicle:
    """Of one daemon. Each method is told how its subject is now."""

    def __init__(self) -> None:
        self._log = log.get("daemon")
        self._sessions = SpeakerState()
        self._source: SourceStatus | None = None
        self._document: tuple[str, str | None, tuple[Fault, ...]] | None = None
        self._node: Node | None = None
        self._unhealthy = ""
        self._session_log = flaps.SessionLog()
        self._bfd = BfdState(reason="")

    def sessions(self, names: Mapping[Address, str], now: SpeakerState) -> None:
        """A line for each session that came or went, unless it flaps, and one when the speaker did."""
        before, self._sessions = self._sessions, now
        self.flaps(view.transitions(names, before, self._sessions, time.monotonic()))
        if before.connected != self._sessions.connected:
            tell = self._log.info if self._sessions.connected else self._log.warning
            reason = {"reason": self._sessions.reason} if self._sessions.reason else {}
            tell("speaker", connected=self._sessions.connected, **reason)

    def flaps(self, transitions: Sequence[flaps.Transition] = ()) -> None:
        """To be asked every second too: what a flapping session did is summed up when time has passed."""
        for line in self._session_log.lines(transitions, time.monotonic()):
            self._log.log(log.LEVELS[line.level], line.event, **line.fields)

    def node(self, name: str, node: Node | None) -> None:
        """A line when our node is found, goes, or shows something else that routes depend on."""
        before, self._node = self._node, node
        if node is None:
            if before is not None:
                self._log.warning("node", name=name, state="gone")
            return
        shown = (node.pod_cidrs, node.internal_ips, node.problems)
        if before is None or shown != (before.pod_cidrs, before.internal_ips, before.problems):
            tell = self._log.warning if node.problems else self._log.info
            problems = {"problems": brief(node.problems)} if node.problems else {}
            addresses = brief(node.internal_ips)
            tell("node", name=node.name, podCIDRs=brief(node.pod_cidrs), internalIPs=addresses, **problems)

    def drain(self, drain: Drain) -> None:
        self._log.info("drain", state=drain.value)

    def health(self, health: Health) -> None:
        """A line when the verdict of the health checks changes."""
        before, self._unhealthy = self._unhealthy, health.reason
        if health.reason and not before:
            self._log.warning("unhealthy, withdrawing everything", reason=health.reason)
        elif before and not health.reason:
            self._log.info("healthy again")

    def bfd(self, now: BfdState) -> None:
        """A line for each session that came up or fell, and one when BIRD came or went."""
        before, self._bfd = self._bfd, now
        if (before.connected, before.reason) != (now.connected, now.reason) and (before.connected or now.connected):
            tell = self._log.info if now.connected or not now.reason else self._log.warning
            tell("bfd", connected=now.connected, **({"reason": now.reason} if now.reason else {}))
        for address, session in now.sessions.items():
            was = before.sessions[address].state if address in before.sessions else State.DOWN
            if (was is State.UP) != (session.state is State.UP):
                tell = self._log.info if session.state is State.UP else self._log.warning
                tell("bfd session", address=str(address), state=session.state.value)

    def source(self, status: SourceStatus) -> None:
        """A line when the source is lost, found again, or says something new."""
        before, self._source = self._source, status
        if before is not None and before.state is status.state and before.faults == status.faults:
            return
        lost = status.state is SourceState.RETRYING
        tell = self._log.warning if lost or status.faults else self._log.info
        told: dict[str, Any] = {"error": status.last_error} if lost else {}
        if status.faults:
            told["faults"] = brief(status.faults)
        tell("source", state=status.state.value, **told)

    def document(self, state: str, reading: Reading) -> None:
        """A line when the masquerade document is refused, is good again, or comes from elsewhere."""
        origin = reading.document.origin if reading.document else None
        before, self._document = self._document, (state, origin, reading.faults)
        if before != self._document:
            tell = self._log.warning if reading.faults else self._log.info
            faults = {"faults": brief(reading.faults)} if reading.faults else {}
            tell("masquerade document", state=state, **({"document": origin} if origin else {}), **faults)

    def reload(self, state: ConfigState, pending: Pending) -> None:
        """What became of a reload, whoever asked for it."""
        if state.faults:
            self._log.error("configuration refused, the last good one stays in use", faults=brief(state.faults))
            return
        waits = {"needs_restart": pending.daemon, "needs_speaker_restart": pending.speaker}
        self._log.info("configuration loaded", **{name: list(keys) for name, keys in waits.items() if keys})
        for warning in brief(state.warnings):
            self._log.warning("configuration", warning=warning)
