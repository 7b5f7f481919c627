"""What is found again on the disk, and what a disk that refuses leaves behind."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bgpd.cni import protocol
from bgpd.cni.frame import Frame, FrameError, decode, encode_answer
from bgpd.cni.journal import Journal, Queue, namespaces, read
from bgpd.config.files import UnreadableError
from bgpd.model.attachment import Attachment, AttachmentKey
from tests.unit.cni_requests import CONTAINER, configuration, frame

KEY = AttachmentKey("cluster", CONTAINER, "eth0")


def attachment(asked: Frame) -> Attachment:
    return protocol.attachment(protocol.parse(asked))


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    made = Journal(tmp_path / "state" / "endpoints")
    assert made.load() == ()
    return made


def files(directory: Path) -> list[str]:
    return sorted(each.name for each in directory.iterdir())


def test_what_was_added_is_found_again_and_what_was_removed_is_not(journal: Journal, tmp_path: Path) -> None:
    directory = tmp_path / "state" / "endpoints"
    other = frame("ADD", CNI_CONTAINERID="other")
    journal.add(frame("ADD"), attachment(frame("ADD")))
    journal.add(other, attachment(other))
    for _ in range(2):
        journal.remove(KEY)
    again = Journal(directory)
    assert again.load() == ()
    assert dict(again.attachments) == dict(journal.attachments) == {attachment(other).key: attachment(other)}
    assert files(directory) == ["cluster,other,eth0"]


def test_the_newest_of_one_key_counts(journal: Journal, tmp_path: Path) -> None:
    newer = frame("ADD", CNI_NETNS="/run/netns/newer")
    journal.add(frame("ADD"), attachment(frame("ADD")))
    journal.add(newer, attachment(newer))
    again = Journal(tmp_path / "state" / "endpoints")
    again.load()
    assert again.attachments[KEY].netns == "/run/netns/newer"


def test_the_namespaces_of_pods_are_told_without_a_daemon(journal: Journal, tmp_path: Path) -> None:
    """Each once; where none ever ran there are none, and nothing is made."""
    for container in ("one", "other"):
        found = frame("ADD", CNI_CONTAINERID=container, CNI_NETNS="/run/netns/pod")
        journal.add(found, attachment(found))
    assert namespaces(tmp_path / "state") == {Path("/run/netns/pod")}
    assert namespaces(tmp_path / "nowhere") == frozenset()
    assert not (tmp_path / "nowhere").exists()


def test_what_cannot_be_read_is_told_and_left_alone(journal: Journal, tmp_path: Path) -> None:
    """The rest is found; what was being written is gone."""
    directory = tmp_path / "state" / "endpoints"
    journal.add(frame("ADD"), attachment(frame("ADD")))
    (directory / "empty").touch()
    (directory / "half").write_bytes(frame("ADD").encode()[:-1])
    (directory / "older").write_bytes(frame("ADD", configuration(cniVersion="0.2.0")).encode())
    (directory / "renamed").write_bytes(frame("ADD").encode())
    (directory / "collected").write_bytes(
        frame("GC", configuration("1.1.0") | {"cni.dev/valid-attachments": []}).encode()
    )
    (directory / ".x").touch()
    again = Journal(directory)
    problems = sorted(again.load())
    assert again.attachments.keys() == {KEY}
    assert [problem.partition(": ")[0] for problem in problems] == [
        str(directory / name) for name in ("collected", "empty", "half", "older", "renamed")
    ]
    assert "cniVersion is '0.2.0'" in problems[3]
    assert "it is not the ADD that its name says" in problems[4]
    assert files(directory) == [str(KEY), "collected", "empty", "half", "older", "renamed"]


def test_a_disk_that_refuses_leaves_memory_as_it_was(journal: Journal, tmp_path: Path) -> None:
    """In the way is a directory of that name: a rename fails after the write, as at a quota."""
    directory = tmp_path / "state" / "endpoints"
    (directory / str(KEY)).mkdir()
    (directory / str(KEY) / "x").touch()
    with pytest.raises(OSError, match="endpoints"):
        journal.add(frame("ADD"), attachment(frame("ADD")))
    assert dict(journal.attachments) == {}
    assert files(directory) == [str(KEY)]


def test_queued_dels_are_done_in_the_order_in_which_they_came(tmp_path: Path) -> None:
    queue = Queue(tmp_path / "queue")
    queue.open()
    for name, at in (("a", 3), ("b", 1), ("c", 2)):
        (queue.directory / name).touch()
        os.utime(queue.directory / name, (at, at))
    (queue.directory / ".d").touch()
    assert [file.name for file in queue.files()] == ["b", "c", "a"]
    queue.open()
    assert not (queue.directory / ".d").exists()


def test_a_file_without_end_is_not_read(tmp_path: Path) -> None:
    with pytest.raises(UnreadableError, match="not a regular file"):
        read(Path("/dev/zero"))
    (tmp_path / "long").write_bytes(b"x" * (2 << 20))
    with pytest.raises(UnreadableError, match="more than"):
        read(tmp_path / "long")


@given(environment=st.binary(max_size=300), configuration=st.binary(max_size=300))
def test_a_frame_is_read_as_it_was_written(environment: bytes, configuration: bytes) -> None:
    made = Frame(environment, configuration)
    assert decode(made.encode()) == made


@given(data=st.binary(max_size=200), cut=st.integers(0, 200))
def test_anything_else_is_no_frame(data: bytes, cut: int) -> None:
    """Nor is one with bytes missing or too many."""
    whole = Frame(b"A=1\0", b"{}").encode()
    for tried in (data, whole[: min(cut, len(whole) - 1)], whole + b"x"):
        with pytest.raises(FrameError):
            decode(tried)


def test_an_answer_tells_its_length() -> None:
    assert encode_answer(1, b'{"a": 1}') == b'bgpd-cni/1 1 8\n{"a": 1}'
