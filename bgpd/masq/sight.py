"""What can be seen of masquerade in a running daemon: the answers of its commands, the figures for /metrics.

Reads and changes nothing. What the findings of a document are is decided by `lint`, how a metric is called by
`observe.samples`.
"""

from __future__ import annotations

import asyncio
import operator
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from bgpd.config.load import Loaded
from bgpd.masq import flows
from bgpd.masq.lint import Lint, surroundings
from bgpd.masq.masquerading import Masquerading
from bgpd.masq.plan import explain
from bgpd.masq.table import KEY
from bgpd.model.brief import brief
from bgpd.model.lpm import LpmKey
from bgpd.model.masq import Finding, Reading
from bgpd.model.outcome import Blocked
from bgpd.model.prefix import Address, Prefix
from bgpd.observe.samples.masquerade import Masquerade
from bgpd.runtime.store import Snapshot, Store


class Sight:
    """Of one `masquerading`, whose maps are pinned in `pins`.

    `advertised` gives what is announced to at least one BGP peer, the same object until it changes; None: nobody can
    say, because nothing is announced on purpose.
    """

    def __init__(
        self,
        masquerading: Masquerading,
        config: Store[Loaded],
        advertised: Callable[[], Collection[Prefix] | None],
        pins: Path,
    ) -> None:
        self._masquerading, self._config, self._advertised, self._pins = masquerading, config, advertised, pins
        self._lint: Lint | None = None
        self._lint_inputs: tuple[object, ...] = 4 * (None,)

    @property
    def lint(self) -> Lint | None:
        """The findings of the document in use, the same object until they may differ. None: there is no document."""
        document, node = self._masquerading.reading.newest.value.document, self._masquerading.node
        if document is None:
            return None
        inputs = (document, node, self._config.newest.value, self._advertised())
        if not all(map(operator.is_, inputs, self._lint_inputs)):
            around = surroundings(self._config.newest.value.config.masquerade, node, inputs[-1])
            if self._lint is None or self._lint.document is not document or self._lint.around != around:
                self._lint = Lint(document, around)
            self._lint_inputs = inputs
        return self._lint

    # --- commands -----------------------------------------------------------------------------------------------

    async def status(self) -> dict[str, Any]:
        """The document, what became of it, how much of it is in the kernel, what is odd about it."""
        reading = self._masquerading.reading.newest
        document = reading.value.document
        return {
            "document": document.origin if document else None,
            "state": state_of(reading),
            "entries": self._listed(),
            "findings": brief(await self._findings()),
        }

    async def list(self, *, hits: bool) -> dict[str, Any]:
        """The list in the kernel, IPv4 first, by address. TargetError: hits are asked for and cannot be read."""
        lists = self._masquerading.lists.values()
        listed = [key for loop in lists for key, held in loop.have.items() if held.listed]
        rows = await asyncio.to_thread(_rows, listed, self._pins if hits else None)
        return {"entries": rows, "findings": brief(await self._findings())}

    def test(self, address: Address) -> dict[str, Any]:
        """What is to become of flows from this node's pods to `address`, and whether the kernel sees to it."""
        verdict = explain(self._masquerading.plan, address)
        concerned = (self._masquerading.lists[address.version].name, self._masquerading.rule.name)
        return {
            "address": str(verdict.address),
            "kept": verdict.kept,
            "entry": str(verdict.entry) if verdict.entry else None,
            "snatTo": verdict.snat_to or None,
            "why": verdict.reason,
            "inForce": all(done for name, done in self._in_force().items() if name in concerned),
        }

    async def _findings(self) -> Sequence[Finding]:
        lint = self.lint
        return await asyncio.to_thread(lambda: lint.findings) if lint else ()

    # --- metrics ------------------------------------------------------------------------------------------------

    def figures(self) -> Masquerade:
        """What /metrics shows."""
        reading, lint = self._masquerading.reading.newest, self.lint
        return Masquerade(
            document_synced=reading.synced,
            document_faults=len(reading.value.faults),
            entries=self._listed(),
            active=self._active(),
            in_force=self._in_force(),
            findings=lambda: len(lint.findings) if lint else 0,
            flows=partial(flows.judged, self._pins),
        )

    def _listed(self) -> dict[str, int]:
        lists = self._masquerading.lists
        return {f"ipv{version}": sum(it.listed for it in loop.have.values()) for version, loop in lists.items()}

    def _active(self) -> dict[str, bool]:
        """Whether the rule of each family is in the kernel; nothing where it is Cilium's business."""
        rule = self._masquerading.rule
        if rule not in self._masquerading.loops:
            return {}
        table = rule.have.get(KEY)
        return {"ipv4": bool(table and table.ipv4), "ipv6": bool(table and table.ipv6)}

    def _in_force(self) -> dict[str, bool]:
        """Whether the kernel has what is wanted, by the loop that sees to it. While that is not known, it has not."""
        masquerading = self._masquerading
        families = map(masquerading.plan.of, masquerading.lists)
        rules = [family.rule for family in families if family and family.rule]
        without = any(isinstance(rule, Blocked) for rule in rules) or bool(rules) != bool(masquerading.rule.have)
        return {
            loop.name: loop.ever_settled
            and not (loop.error or loop.trouble or (without and loop is masquerading.rule))
            for loop in masquerading.loops
        }


def state_of(reading: Snapshot[Reading]) -> str:
    """What became of the newest document."""
    if reading.value.faults:
        return "refused, the last good one stays in use" if reading.value.document else "refused"
    if reading.value.document is None:
        return "not read yet"
    return "in use" if reading.synced else "remembered from before, the newest is not read yet"


def _rows(listed: Sequence[LpmKey], pins: Path | None) -> list[dict[str, Any]]:
    """`pins` None: nobody asks for hits."""
    counted = flows.hits(pins) if pins else {}
    entries = sorted(((key.prefix, counted.get(key)) for key in listed), key=lambda it: _by_address(it[0]))
    return [{"prefix": str(prefix), "hits": count} for prefix, count in entries]


def _by_address(prefix: Prefix) -> tuple[int, int, int]:
    return prefix.version, int(prefix.network_address), prefix.prefixlen
