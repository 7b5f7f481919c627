"""What lies in the speaker's directory before ExaBGP starts."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from bgpd.bgp import render
from bgpd.bgp.launch import SpeakerFiles

BLOCK = 'neighbor 11.11.255.1 {\n  description "tor-a 0123456789ab";\n}\n'


def header(end_of_rib_after_s: int) -> str:
    return render.header("/python", "/guardian.py", "/bridge.sock", end_of_rib_after_s)


def test_a_changed_header_replaces_the_old_one_and_the_neighbors_stay(tmp_path: Path) -> None:
    """Else a restart of the speaker would start the old helper until some peer is edited."""
    files = SpeakerFiles(tmp_path)
    files.prepare(header(30))
    files.configuration.write_text(render.document(header(30), {"tor-a": BLOCK}))
    files.prepare(header(77))
    assert files.configuration.read_text() == render.document(header(77), {"tor-a": BLOCK})


def test_what_is_as_it_should_be_is_not_touched(tmp_path: Path) -> None:
    """Preparing twice leaves the same files, and no other beside them."""
    files = SpeakerFiles(tmp_path)
    files.prepare(header(30))
    before = {file.name: file.stat().st_ino for file in files.directory.iterdir()}
    files.prepare(header(30))
    assert {file.name: file.stat().st_ino for file in files.directory.iterdir()} == before
    assert before.keys() == {"exabgp.conf", "exabgp.env"}


def test_what_was_prepared_for_the_same_settings_need_not_be_again(tmp_path: Path) -> None:
    """Neighbors may come and go meanwhile; other settings, another header or nothing at all is another matter."""
    files, head = SpeakerFiles(tmp_path), header(30)
    assert not files.is_prepared(b"settings")
    files.prepare(head, b"settings")
    assert files.is_prepared(b"settings")
    assert not files.is_prepared(b"other settings")
    files.configuration.write_text(render.document(head, {"tor-a": BLOCK}))
    assert files.is_prepared(b"settings")
    files.prepare(header(77))  # by a daemon that was started with other ones
    assert not files.is_prepared(b"settings")
    files.prepare(head, b"settings")
    assert files.is_prepared(b"settings")
    files.configuration.unlink()
    assert not files.is_prepared(b"settings")


def test_what_another_release_prepared_is_prepared_again(tmp_path: Path) -> None:
    """Its header names a python that may be gone by the next start; what cannot be read is as good as nothing."""
    files, head = SpeakerFiles(tmp_path), header(30)
    files.prepare(head, b"settings")
    ours = files.prepared.read_text()
    for other in (f"{'0' * 64}\n{head}", "", ours.partition("\n")[0]):
        files.prepared.write_text(other)
        assert not files.is_prepared(b"settings")
    files.prepare(head, b"settings")
    assert files.prepared.read_text() == ours


@pytest.mark.parametrize("seconds", [30, 77])
def test_the_directory_s_group_may_read_whatever_the_umask(tmp_path: Path, seconds: int) -> None:
    """The units' umask is 0077, and what the one user writes the other reads; nobody else does."""
    files = SpeakerFiles(tmp_path)
    before = os.umask(0o077)
    try:
        files.prepare(header(30))
        files.prepare(header(seconds))
    finally:
        os.umask(before)
    assert {stat.S_IMODE(file.stat().st_mode) for file in files.directory.iterdir()} == {0o640}
