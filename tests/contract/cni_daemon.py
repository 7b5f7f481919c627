"""The CNI server as a process of its own, which a test can kill and stop; its attacher only records.

    python -m tests.contract.cni_daemon SOCKET QUEUE JOURNAL CALLS

`CALLS` gets a line for each call of the attacher. A container named slow-* is attached only when it is detached.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from bgpd.cni.journal import Journal, Queue
from bgpd.cni.server import CniServer
from bgpd.model.attachment import Attachment, AttachmentKey
from bgpd.model.outcome import Outcome
from tests.unit.cni_attacher import Recorder


class Told(Recorder):
    """Writes down what it is asked for, at once: the process may be killed."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self._file = file

    async def attach(self, attachment: Attachment) -> Outcome:
        self._tell(f"attach {attachment.key.container} {' '.join(str(each) for each in attachment.addresses)}")
        if attachment.key.container.startswith("slow-"):
            await asyncio.Event().wait()
        return await super().attach(attachment)

    async def detach(self, key: AttachmentKey, attachment: Attachment | None) -> Outcome:
        self._tell(f"detach {key.container} {'known' if attachment else 'unknown'}")
        return await super().detach(key, attachment)

    def _tell(self, line: str) -> None:
        with self._file.open("a") as file:
            file.write(line + "\n")


async def serve(socket: Path, queue: Path, journal: Path, calls: Path) -> None:
    remembered = Journal(journal)
    remembered.load()
    await CniServer(socket, Told(calls), remembered, Queue(queue)).run()


if __name__ == "__main__":
    asyncio.run(serve(*map(Path, sys.argv[1:5])))
