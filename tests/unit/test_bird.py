"""BIRD's log, while BIRD begins another."""

from __future__ import annotations

import os
import threading
from ipaddress import ip_address
from pathlib import Path

import pytest

from bgpd.bgp.bird import Bird, BirdFiles

PEER = "11.11.255.1"
SAID = ("changed state from Up to Down",)
EXPIRED = ("expired", "changed state from Up to Down")


def noted(*events: str) -> str:
    return "".join(f"<TRACE> bgpd: Session to {PEER} {event}\n" for event in events)


@pytest.mark.parametrize(("earlier", "last"), [(SAID, EXPIRED), (EXPIRED, SAID)], ids=["expired", "said"])
def test_a_fall_is_found_while_the_log_is_changed_for_another(
    tmp_path: Path, earlier: tuple[str, ...], last: tuple[str, ...]
) -> None:
    """Or an earlier one would speak for it, and a session with a dead peer would be left to its hold timer."""
    files = BirdFiles(tmp_path)
    files.prepare()
    before = files.log.with_name(f"{files.log.name}.before")
    files.log.write_text(noted(*last))
    os.mkfifo(before)

    def rotate() -> None:
        """Once somebody has begun to read the one before."""
        with before.open("w") as older:
            files.log.write_text("")
            older.write(noted(*earlier))

    rotating = threading.Thread(target=rotate)
    rotating.start()
    said = Bird(files).said_down()
    rotating.join()
    assert said == ({ip_address(PEER)} if last == SAID else set())
