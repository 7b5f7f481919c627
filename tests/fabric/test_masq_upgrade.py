"""Another release of the daemon takes over what an older one left in the kernel, its program among it.

The older release is this one with a program whose instructions are others and whose decisions are the same: it is
built from the sources, as the shipped one is, and runs as a daemon of its own.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from bgpd.masq.masquerading import PROGRAM
from bgpd.masq.table import KEY
from tests.fabric.masq_node import IPV4, echoed, udp_client, udp_echo
from tests.fabric.masq_site import MasqSite, open_flows
from tests.fabric.node import BIN
from tests.fabric.process import poll
from tests.fabric.release import Release

PORT = 7008  # of the new flows; the open ones have another
PATIENCE_S = 30.0  # what is lost never comes, and a daemon starts slowly beside others

pytestmark = pytest.mark.needs("nft", "mount", "make", "clang-16", "llvm-strip-16", "clang-format-16")


@pytest.fixture
def older(tmp_path: Path) -> Path:
    """The `bgpd` of a release whose program counts twice what it keeps."""
    release = Release(tmp_path)
    counts = "	count(&masq_verdicts, &verdict);\n"
    release.replace_c("masq.bpf.c", (counts, f"{counts}	if (verdict == MASQ_LISTED)\n	{counts}"))
    return release.build(["masq"])


@pytest.fixture
def roomier(tmp_path: Path) -> Path:
    """The `bgpd` of a release whose lists are twice as long."""
    release = Release(tmp_path)
    release.replace_c("include/bgpd/layout.h", ("#define IPMASQ_ENTRIES 16384", "#define IPMASQ_ENTRIES 32768"))
    release.replace("datapath/layout.py", ("IPMASQ_ENTRIES = 16384", "IPMASQ_ENTRIES = 32768"))
    return release.build(["masq"])


@pytest.mark.parametrize("back", [False, True], ids=["forth", "and back"])
def test_another_release_takes_over_and_no_packet_notices(masq_site: MasqSite, older: Path, back: bool) -> None:
    """Its program asks the same maps; the rule asks it, and no flow, old or new, leaves untranslated or is lost."""
    releases = [BIN / "bgpd", older] if back else [older, BIN / "bgpd"]
    masq_site.node.program = releases[0]
    masq_site.start()
    before = masq_site.pinned()
    assert asked(masq_site) == before[PROGRAM]
    with open_flows(masq_site), new_flows(masq_site) as seen:
        hand_over(masq_site, releases[1])
        count = len(seen)
        poll(lambda: len(seen) > count + 10, PATIENCE_S, lambda: "no flow since")
    assert {address for address, _ in seen} == {IPV4.node}
    assert masq_site.pinned() == before | {PROGRAM: asked(masq_site)}, "the maps are others"
    masq_site.check_in_force()


@pytest.mark.parametrize("back", [False, True], ids=["forth", "and back"])
def test_lists_of_another_layout_are_written_beside_those_that_are_asked(
    masq_site: MasqSite, roomier: Path, back: bool
) -> None:
    """No flow, old or new, leaves by another address, to what is listed as little as elsewhere."""
    releases = [roomier, BIN / "bgpd"] if back else [BIN / "bgpd", roomier]
    masq_site.node.program = releases[0]
    masq_site.start()
    before = masq_site.pinned()
    with open_flows(masq_site), new_flows(masq_site) as seen, new_flows(masq_site, IPV4.listed, PORT + 1) as kept:
        hand_over(masq_site, releases[1])
        count = len(kept)
        poll(lambda: len(kept) > count + 10, PATIENCE_S, lambda: "no flow since")
    assert {address for address, _ in seen} == {IPV4.node}
    assert {address for address, _ in kept} == {IPV4.pod_a}
    after = masq_site.pinned()
    assert {name for name in before if after[name] == before[name]} == {"masq_verdicts"}


def hand_over(site: MasqSite, program: Path) -> None:
    """From the daemon that runs to that of another release; returns when the rule asks another program."""
    before = asked(site)
    assert site.node.daemon is not None
    site.node.daemon.stop()
    site.node.program = program
    site.node.start_daemon()
    poll(lambda: asked(site) != before, PATIENCE_S, lambda: site.node.bgpd("status", check=False))


def asked(site: MasqSite) -> int:
    """The number of the program that the rule asks."""
    table = site.place.shown()
    assert table is not None, f"no {KEY}"
    assert not table.damage
    return table.program_id


@contextlib.contextmanager
def new_flows(
    site: MasqSite, to: str = IPV4.unlisted, port: int = PORT
) -> Iterator[list[tuple[str, int]]]:
    """One after the other; who the server saw. One that is not answered fails the test."""
    over = threading.Event()
    lost: list[str] = []

    def dial() -> None:
        while not over.is_set():
            try:
                with udp_client(site.place.pod_a, to, port) as dialer:
                    dialer.settimeout(PATIENCE_S)
                    echoed(dialer)
            except OSError as error:
                lost.append(f"after {len(seen)} flows: {error!r}")

    with udp_echo(site.place.outside, to, port) as seen:
        thread = threading.Thread(target=dial, name="new flows")
        thread.start()
        try:
            yield seen
        finally:
            over.set()
            thread.join()
    assert not lost
