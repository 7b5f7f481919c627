"""The configuration as files: what of a file itself is refused, and how passwords are read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bgpd.config.files import UnreadableError, read_limited
from bgpd.config.load import load
from bgpd.model.fault import FaultsError

CONFIG = """\
source: {{manifests: /etc/bgpd/manifests}}
bgp:
  localASN: 64512
  advertisements: [{{advertisementType: PodCIDR}}]
  export: {{allow: [188.188.0.0/16]}}
  peers:
    - {{name: tor-a, peerAddress: 11.11.255.1, peerASN: 64512, authPasswordFile: {password}}}
    - {{name: tor-b, peerAddress: 11.11.255.2, peerASN: {asn}}}
"""


def write(path: Path, data: str | bytes, mode: int = 0o600) -> Path:
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    path.chmod(mode)
    return path


def config(directory: Path, password: Path, asn: int = 64512, mode: int = 0o644) -> Path:
    return write(directory / "bgpd.yaml", CONFIG.format(password=password, asn=asn), mode)


def refused(path: Path) -> list[str]:
    with pytest.raises(FaultsError) as caught:
        load(path)
    return [str(fault).replace(str(path.parent), "DIR") for fault in caught.value.faults]


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o640])
def test_passwords_come_by_peer_and_do_not_show(tmp_path: Path, mode: int) -> None:
    """The one newline at the end is none of the password; no printing of the result gives it away."""
    password = write(tmp_path / "tor-a.md5", 'pa ss"word\n', mode)
    loaded = load(config(tmp_path, password))
    assert {name: secret.reveal() for name, secret in loaded.passwords.items()} == {"tor-a": 'pa ss"word'}
    assert 'ss"word' not in f"{loaded} {loaded.passwords} {loaded.passwords['tor-a']}"
    assert loaded.config.bgp.peers[1].auth_password_file is None
    assert loaded.warnings == ()


def test_the_host_name_is_the_default_node_name(tmp_path: Path) -> None:
    """In lower case, as kubelet registers it."""
    name = load(config(tmp_path, write(tmp_path / "p", "x"))).config.node.name
    assert name == os.uname().nodename.lower()


def test_equal_files_load_equal(tmp_path: Path) -> None:
    """A reload without a change is none; a new password is one."""
    password = write(tmp_path / "p", "x")
    path = config(tmp_path, password)
    first = load(path)
    assert load(path) == first
    write(password, "y")
    assert load(path) != first


@pytest.mark.parametrize(
    ("data", "mode", "problem"),
    [
        ("", 0o600, "it is empty; give the password on one line"),
        ("\n", 0o600, "it is empty; give the password on one line"),
        ("a\nb\n", 0o600, "it has several lines; give the password on one line"),
        (
            "a\r\n",
            0o600,
            "it has characters other than printable ASCII (a Windows line end counts as one)",
        ),
        ("ä", 0o600, "it has characters other than printable ASCII (a Windows line end counts as one)"),
        ("x" * 81, 0o600, "the password has 81 bytes; Linux takes at most 80"),
        ("x" * 5000, 0o600, "it has more than 4096 bytes"),
        ("x", 0o644, "others have access to it (mode 0644); chmod 0600, or 0640 for a group"),
        ("x", 0o660, "others have access to it (mode 0660); chmod 0600, or 0640 for a group"),
    ],
)
def test_bad_passwords(tmp_path: Path, data: str, mode: int, problem: str) -> None:
    """Refused at the key that names the file, without quoting what is in it."""
    path = config(tmp_path, write(tmp_path / "p", data, mode))
    assert refused(path) == [f"DIR/bgpd.yaml:7:63: bgp.peers[0].authPasswordFile: DIR/p: {problem}"]


def test_eighty_bytes_are_a_password(tmp_path: Path) -> None:
    """The kernel's limit itself is allowed."""
    loaded = load(config(tmp_path, write(tmp_path / "p", "x" * 80)))
    assert loaded.passwords["tor-a"].reveal() == "x" * 80


def test_faults_of_all_files_come_at_once(tmp_path: Path) -> None:
    """The file's mode, its schema and the passwords it names."""
    assert refused(config(tmp_path, tmp_path / "absent", asn=0, mode=0o666)) == [
        "DIR/bgpd.yaml: anyone may write it (mode 0666); chmod o-w",
        "DIR/bgpd.yaml:7:63: bgp.peers[0].authPasswordFile: DIR/absent: the file does not exist",
        "DIR/bgpd.yaml:8:47: bgp.peers[1].peerASN: found 0; "
        "give an ASN from 1 to 4294967295, or in asdot like '64512.1'",
    ]


def test_a_missing_configuration_is_a_fault(tmp_path: Path) -> None:
    """It has no line to point at."""
    assert refused(tmp_path / "bgpd.yaml") == ["DIR/bgpd.yaml: the file does not exist"]


def test_a_big_configuration_is_not_read(tmp_path: Path) -> None:
    """Fifty megabytes, of which one is looked at."""
    path = tmp_path / "bgpd.yaml"
    with path.open("wb") as file:
        file.truncate(50_000_000)
    assert refused(path) == ["DIR/bgpd.yaml: it has more than 1048576 bytes"]


def problem(path: Path) -> str:
    with pytest.raises(UnreadableError) as caught:
        read_limited(path)
    return str(caught.value)


def test_what_is_no_file_is_not_read(tmp_path: Path) -> None:
    """A FIFO would block for ever, a device never end."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to("loop")
    assert problem(tmp_path) == "it is a directory; give a file"
    assert problem(tmp_path / "fifo") == "it is not a regular file"
    assert problem(Path("/dev/zero")) == "it is not a regular file"
    assert problem(tmp_path / "loop") == "the file cannot be opened: Too many levels of symbolic links"
    assert problem(tmp_path / ("x" * 300)) == "the file cannot be opened: File name too long"


def test_a_link_is_followed(tmp_path: Path) -> None:
    """Kubernetes mounts every file of a Secret as a link; the mode is that of the file."""
    write(tmp_path / "file", "x", 0o400)
    (tmp_path / "link").symlink_to("file")
    contents = read_limited(tmp_path / "link")
    assert (contents.data, contents.mode) == (b"x", 0o400)
