"""Remembers the last good document in a file, for a node that boots while there is none to be had.

After a reboot the maps are empty, and the API server may be unreachable or the document broken. What was remembered
then counts until a source delivers, and is published as not synced: it may add to the kernel, never take away.
Written as a document of its own, so that an operator can read it.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from bgpd.config.files import UnreadableError, read_limited
from bgpd.masq.parse import LIMITS, parse
from bgpd.model.fault import FaultsError
from bgpd.model.masq import Compat, MasqDocument, Reading, Rules
from bgpd.runtime.store import Store

AFTER_S = 1.0  # writing 16,000 entries takes 50 ms of processor, and the kernel gets them first
_AS_WRITTEN = Rules(Compat.CILIUM, ipv6=True)  # no limit, and what is left out is not replaced by a default


class Memory:
    """What `file` holds of `store`. `problem`: why the newest document could not be kept; empty: it could."""

    def __init__(self, file: Path, store: Store[Reading], *, after_s: float = AFTER_S) -> None:
        self._file, self._store, self._after_s = file, store, after_s
        self._kept: MasqDocument | None = None
        self.problem = ""

    def recall(self) -> None:
        """Publishes what an earlier life left."""
        try:
            data = read_limited(self._file, LIMITS.bytes).data
            self._kept = parse(data, str(self._file), _AS_WRITTEN) if data else None  # a power cut empties files
        except (UnreadableError, FaultsError):
            self._kept = None  # the first start, or a disk that was full: as good as nothing
        if self._kept is not None:
            self._store.publish(Reading(self._kept), synced=False)

    async def run(self) -> None:
        """Keeps what comes. Never returns; cancel it."""
        while True:
            await asyncio.sleep(self._after_s)
            newest = self._store.newest
            await asyncio.to_thread(self.keep, newest.value.document)
            await self._store.newer_than(newest.revision)

    def keep(self, document: MasqDocument | None) -> None:
        """Writes it, unless it is there already or is None."""
        if document is None or document is self._kept:
            return
        new = self._file.with_name(f"{self._file.name}.new")
        try:
            new.write_bytes(_written(document))
            new.replace(self._file)
        except OSError as error:
            self.problem = f"{self._file}: the document cannot be remembered: {error.strerror}"
            return
        self._kept, self.problem = document, ""


def _written(document: MasqDocument) -> bytes:
    value = {
        "nonMasqueradeCIDRs": [str(key) for key in document.keys],
        "masqLinkLocal": document.masq_link_local,
        "masqLinkLocalIPv6": document.masq_link_local_v6,
        "resyncInterval": f"{document.resync_interval_s:f}s",
    }
    return json.dumps(value, indent=1).encode()
