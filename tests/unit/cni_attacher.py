"""An attacher that only remembers what it was asked for, and answers what a test tells it to."""

from __future__ import annotations

import asyncio
from collections.abc import Collection

from bgpd.model.attachment import Attachment, AttachmentKey
from bgpd.model.outcome import DONE, Outcome


class Recorder:
    """`attached` is what is attached now; `calls` are verb and container, in the order in which they came.

    An event in `holds` keeps every call of that name waiting until it is set; `started` is set when one attaches.
    """

    def __init__(self) -> None:
        self.attached: dict[AttachmentKey, Attachment] = {}
        self.calls: list[tuple[str, str]] = []
        self.attach_outcome: Outcome = DONE
        self.detach_outcome: Outcome = DONE
        self.collect_outcome: Outcome = DONE
        self.differs: tuple[str, ...] = ()
        self.reason = ""
        self.kept: frozenset[AttachmentKey] | None = None
        self.holds: dict[str, asyncio.Event] = {}
        self.started = asyncio.Event()
        self.most_at_once = self._at_once = 0
        self.mistake: Exception | None = None

    async def attach(self, attachment: Attachment) -> Outcome:
        self.calls.append(("attach", attachment.key.container))
        self.started.set()
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            if self.mistake is not None:
                raise self.mistake
            await self._held("attach")
        finally:
            self._at_once -= 1
        if self.attach_outcome == DONE:
            self.attached[attachment.key] = attachment
        return self.attach_outcome

    async def detach(self, key: AttachmentKey, attachment: Attachment | None) -> Outcome:
        self.calls.append(("detach", key.container))
        await self._held("detach")
        if self.detach_outcome == DONE:
            self.attached.pop(key, None)
        return self.detach_outcome

    async def check(self, attachment: Attachment) -> Collection[str]:
        self.calls.append(("check", attachment.key.container))
        await self._held("check")
        return self.differs

    async def collect(self, keep: Collection[AttachmentKey]) -> Outcome:
        self.kept = frozenset(keep)
        return self.collect_outcome

    def status(self) -> str:
        return self.reason

    async def _held(self, call: str) -> None:
        if call in self.holds:
            await self.holds[call].wait()
