"""The ways from one rule set, one daemon and one release to the next, under a thousand new connections a second.

What is allowed before and after must not notice them: no packet of it is sent again. Of what is forbidden before and
after nothing must arrive.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from bgpd.datapath import layout
from tests.fabric.masq_node import alone, echoed, udp_client, udp_echo
from tests.fabric.netns import Lab
from tests.fabric.node import BIN
from tests.fabric.policy_node import PLANS, Plan
from tests.fabric.policy_site import Object, PolicySite, peers, policy
from tests.fabric.probes import SILENCE_S
from tests.fabric.process import poll
from tests.fabric.release import Release
from tests.fabric.traffic import traffic

pytestmark = pytest.mark.needs("nft", "mount")

ALLOWED, FORBIDDEN = 9000, 9001
FLIPS = 1000 if os.environ.get("BGPD_CONFORMANCE") == "all" else 250
RATE = 500  # connections a second, in each of two places
CONNECTIONS = 300  # made in each place before and after an event
PLACES = [("a", "b", PLANS[0]), ("c", "d", PLANS[1])]
"""Between two pods behind a bridge that hands its frames to nobody, and between two that are routed."""


@pytest.fixture
def site(lab: Lab, bpffs: Path) -> Iterator[PolicySite]:
    """With the first rule set; the daemon not started."""
    with contextlib.closing(PolicySite(lab, bpffs, br_netfilter=False)) as made:
        made.put(*rules(0))
        yield made


def rules(turn: int) -> list[Object]:
    """Two ways to allow the same that have no rule in common; only the first lets the far pod in."""
    if turn % 2:
        ports = [{"protocol": each, "port": ALLOWED - 100, "endPort": ALLOWED} for each in ("TCP", "UDP")]
        blocks = [("10.244.0.0/16", PLANS[0].remote_pod), ("fd44::/16", PLANS[1].remote_pod)]
        to: list[Object] = [{"ipBlock": {"cidr": cidr, "except": [alone(far)]}} for cidr, far in blocks]
        come_from = to
    else:
        ports = [{"protocol": each, "port": ALLOWED} for each in ("TCP", "UDP")]
        come_from = [peers("a", "c"), {"namespaceSelector": {}, "podSelector": {"matchLabels": {"pod": "far"}}}]
        to = [peers("b", "d")]
    return [
        policy("x", "in", ingress=[{"from": come_from, "ports": ports}]),
        policy("x", "out", egress=[{"to": to, "ports": ports}], types=["Egress"]),
    ]


class Flows:
    """In all places at once."""

    def __init__(self, site: PolicySite, stack: contextlib.ExitStack) -> None:
        pods = site.place.pods
        self._going = [
            stack.enter_context(
                traffic(pods[client], pods[server], plan.of(client), plan.of(server), ALLOWED, FORBIDDEN, RATE)
            )
            for client, server, plan in PLACES
        ]
        self.wait_more()

    def wait_more(self) -> None:
        for each in self._going:
            each.wait_more(CONNECTIONS)


@contextlib.contextmanager
def flowing(site: PolicySite) -> Iterator[Flows]:
    with contextlib.ExitStack() as stack:
        yield Flows(site, stack)


def test_policies_count_one_after_the_other_and_no_flow_notices(site: PolicySite) -> None:
    """Each is in force before the next is written; a thousand where BGPD_CONFORMANCE is `all`."""
    site.start()
    started = time.monotonic()
    with flowing(site):
        for turn in range(FLIPS):
            site.apply(*rules(turn))
    print(f"{FLIPS / (time.monotonic() - started):.0f} policies a second")


@pytest.mark.parametrize(("server", "plan"), [each[1:] for each in PLACES], ids=["bridged", "routed"])
def test_a_flow_stops_with_the_policy_that_revokes_it_and_goes_on_with_the_next(
    site: PolicySite, server: str, plan: Plan
) -> None:
    """No datagram more arrives."""
    site.start()
    pod, to = site.place.pods[server], plan.of(server)
    with udp_echo(pod, to, ALLOWED) as arrived, udp_client(site.place.outside, to, ALLOWED) as asker:
        assert echoed(asker) == b"x"
        site.apply(*rules(1))
        asker.send(b"y")
        asker.settimeout(SILENCE_S)
        with pytest.raises(TimeoutError):
            asker.recv(1)
        assert len(arrived) == 1
        site.apply(*rules(2))
        assert echoed(asker) == b"x"


def test_a_daemon_that_ends_in_order_or_at_once_is_not_noticed(site: PolicySite) -> None:
    """Nor is the next one, which finds everything in the kernel."""
    site.start()
    before = site.pinned()
    with flowing(site) as going:
        for end in ("stop", "kill", "stop"):
            assert site.node.daemon is not None
            getattr(site.node.daemon, end)()
            going.wait_more()
            site.node.start_daemon()
            site.apply()
            going.wait_more()
    assert site.pinned() == before


@pytest.fixture
def older(tmp_path: Path) -> Path:
    """The `bgpd` of a release whose programs count twice what they judge."""
    release = Release(tmp_path)
    for decided in ("decide(skb, 0)", "decide(skb, 1)", "track(skb, &packet, state, recall)", "decide_astray(skb)"):
        release.replace_c("policy.bpf.c", (f"counted({decided})", f"counted(counted({decided}))"))
    return release.build(["policy"])


@pytest.mark.needs("make", "clang-16", "llvm-strip-16", "clang-format-16")
def test_another_release_takes_over_and_back_unnoticed(site: PolicySite, older: Path) -> None:
    """Its programs read the same maps, and the rules ask them."""
    site.node.program = older
    site.start()
    with flowing(site) as going:
        for program in (BIN / "bgpd", older):
            before = asked(site)
            maps = {name: number for name, number in site.pinned().items() if name in layout.MAPS}
            assert site.node.daemon is not None
            site.node.daemon.stop()
            site.node.program = program
            site.node.start_daemon()
            poll(partial(asks_others, site, before), 20, lambda: site.node.bgpd("status", check=False))
            site.apply()
            going.wait_more()
            assert maps.items() <= site.pinned().items()


def asked(site: PolicySite) -> set[int]:
    """The numbers of the programs that the rules ask."""
    return {number for table in site.tables().values() for number in table.ids}


def asks_others(site: PolicySite, before: set[int]) -> bool:
    return site.has_tables() and not before & asked(site)
