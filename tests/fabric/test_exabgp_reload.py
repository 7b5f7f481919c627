"""What a reload of ExaBGP's configuration does, and does not: facts that `bgp.reconcile.Sessions` rests on.

Each test states one on the real ExaBGP with real peers; see `test_exabgp_facts`.
"""

from __future__ import annotations

import time

import pytest

from tests.fabric import exabgp
from tests.fabric.bgp_wire import BgpType
from tests.fabric.bird import Bird
from tests.fabric.observe import BgpCapture
from tests.fabric.process import poll
from tests.fabric.test_exabgp_api import (
    NODE,
    NODE_B,
    TOR,
    TOR_B,
    V4,
    Helper,
    Rig,
    alive,
    neighbor,
    rig,
    withdrawn,
)

__all__ = ["rig"]
pytestmark = pytest.mark.needs("bird", str(exabgp.PROGRAM))

OTHER = "188.188.1.0/24"
BROKEN = "neighbor 10.0.2.1 { no such word; }"


def loaded(helper: Helper) -> str:
    """The neighbors that ExaBGP has in its configuration, as it writes them."""
    return "\n".join(helper.command("show neighbor configuration"))


def wait_loaded(helper: Helper, text: str) -> None:
    poll(lambda: text in loaded(helper), 5, lambda: f"never loaded: {text}")


def two_tors(rig: Rig) -> tuple[Bird, Bird, Helper]:
    """Both ToRs established."""
    birds = rig.tor(TOR), rig.tor(TOR_B)
    helper = rig.start(neighbor(TOR), neighbor(TOR_B))
    birds[0].wait_established(NODE)
    birds[1].wait_established(NODE_B)
    return *birds, helper


@pytest.mark.parametrize("way", ["signal", "command"])
def test_a_reload_resets_the_session_that_changed_and_no_other(rig: Rig, way: str) -> None:
    """By SIGUSR1 and by the API's `reload`. `Sessions` uses the latter and changes one uplink at a time."""
    bird, bird_b, helper = two_tors(rig)
    with BgpCapture(bird.namespace, "eth0") as capture, BgpCapture(bird_b.namespace, "eth0") as capture_b:
        rig.configure(neighbor(TOR), neighbor(TOR_B, hold_s=30))
        if way == "signal":
            rig.reload()
        else:
            helper.command("reload")
        bird_b.wait_down(NODE_B)
        bird_b.wait_established(NODE_B)
    assert capture.besides_keepalives(src=NODE) == []
    assert (capture.counts()["OPEN"], capture_b.counts()["OPEN"]) == (0, 2)


def test_a_reload_without_a_change_is_not_seen_by_any_peer(rig: Rig) -> None:
    """A description is no change either: `render` keeps a digest there. `Sessions` may reload at any time."""
    bird, bird_b, helper = two_tors(rig)
    with BgpCapture(bird.namespace, "eth0") as capture, BgpCapture(bird_b.namespace, "eth0") as capture_b:
        helper.command("reload")
        rig.configure(neighbor(TOR, session='description "changed";'), neighbor(TOR_B))
        helper.command("reload")
        wait_loaded(helper, "changed")
        for tor, node, it in ((bird, NODE, capture), (bird_b, NODE_B, capture_b)):
            assert tor.session(node).established
            assert it.besides_keepalives(src=node) == []


def test_a_reload_leaves_a_helper_alone_whose_command_changed(rig: Rig) -> None:
    """The command in the file counts at ExaBGP's next start: `SpeakerFiles.prepare` may write it at any time."""
    _, _, helper = two_tors(rig)
    text = rig.file.read_text()
    rig.file.write_text(text.replace("/helper.sock;", "/helper.sock 77;").replace(TOR_B, "10.0.1.9"))
    assert rig.file.read_text().count(" 77;") == 1
    helper.command("reload")
    wait_loaded(helper, "10.0.1.9")
    assert alive(helper.pid)


def test_a_new_neighbor_is_not_told_what_was_announced_before(rig: Rig) -> None:
    """Not even what was announced to all: `Routes` observes the adj-rib of each peer and announces to each."""
    bird, bird_b = rig.tor(TOR), rig.tor(TOR_B)
    helper = rig.start(neighbor(TOR))
    bird.wait_established(NODE)
    helper.command(f"announce route {V4} next-hop {NODE}")
    bird.wait_route(V4)
    rig.configure(neighbor(TOR), neighbor(TOR_B))
    helper.command("reload")
    bird_b.wait_established(NODE_B)
    helper.command(f"announce route {OTHER} next-hop {NODE_B}")
    bird_b.wait_route(OTHER)
    assert bird_b.route(V4) is None


def test_after_one_reload_that_failed_none_succeeds(rig: Rig) -> None:
    """Not even one with the file that ExaBGP was started with: `Sessions` never loads what was not checked."""
    helper = rig.start(neighbor(TOR))
    rig.configure(neighbor(TOR), BROKEN)
    rig.reload()
    assert rig.process is not None
    rig.process.wait_log("could not load/reload configuration")
    rig.configure(neighbor(TOR), neighbor(TOR_B))
    rig.reload()
    rig.process.wait_log("could not load/reload configuration", times=2)
    assert TOR_B not in loaded(helper)


@pytest.mark.parametrize(("block", "fine"), [(neighbor(TOR_B), True), (BROKEN, False)])
def test_validate_says_beforehand_whether_a_reload_would_fail(rig: Rig, block: str, fine: bool) -> None:
    """`exabgp validate -n FILE` ends with 0, or not: `Sessions` asks it about the file before renaming it."""
    rig.configure(neighbor(TOR), block)
    argv = ["env", "exabgp_api_cli=false", str(exabgp.PROGRAM), "validate", "-n", str(rig.file)]
    assert (rig.node.run(argv, check=False).returncode == 0) is fine


def test_a_static_route_taken_out_of_the_file_stays_until_the_peer_speaks(rig: Rig) -> None:
    """The withdrawal is not sent before the peer's next message: with a hold time of 90 s, half a minute.

    So `render` writes no routes: all are announced and withdrawn by the API, at once.
    """
    bird = rig.tor()
    static = [f"route {it} next-hop {NODE}" for it in (V4, OTHER)]
    helper = rig.start(neighbor(TOR, routes=static))
    bird.wait_route(OTHER)
    with BgpCapture(bird.namespace, "eth0") as capture:
        capture.wait(lambda it: it.type is BgpType.KEEPALIVE and it.src == TOR)
        changed_at = time.time()
        rig.configure(neighbor(TOR, routes=static[:1]), neighbor(TOR_B))
        helper.command("reload")
        wait_loaded(helper, TOR_B)
        withdrawal = capture.wait(withdrawn, what="withdrawal")
    assert any(changed_at < it.time < withdrawal.time for it in capture.messages(src=TOR))
    bird.wait_no_route(OTHER)


def test_a_route_queued_for_a_peer_that_is_down_blocks_every_reload(rig: Rig) -> None:
    """ExaBGP acknowledges the reload and drops it without a word, until that peer has come up.

    So `Routes` announces to sessions that are up only, and `Sessions` reads back what it had loaded.
    """
    helper = rig.start(neighbor(TOR))
    helper.command(f"neighbor {TOR} announce route {V4} next-hop {NODE}")
    rig.configure(neighbor(TOR), neighbor(TOR_B))
    for _ in range(3):
        assert helper.command("reload") == ["reload in progress"]
        assert TOR_B not in loaded(helper)
    bird = rig.tor()
    bird.wait_route(V4)
    helper.command("reload")
    wait_loaded(helper, TOR_B)
