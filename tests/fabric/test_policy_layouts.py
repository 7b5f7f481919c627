"""Another release whose maps have another layout takes over, and back: nobody notices, on veths and on macvlans.

The maps of the one are of no use to the other, so the new ones are written beside those that packets are judged by,
and the programs go over when all is there. In every test clients make allowed connections and try forbidden ones all
the time, some connections stay open, and no packet of what is allowed may be lost. Of ipvlans
`test_policy_ipvlan_site` asks the same, in virtual machines.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TypeAlias

import pytest

from bgpd.datapath import jump, layout, libbpf, links, pins
from bgpd.model.endpoint import MacvlanMode
from tests.fabric import plugin
from tests.fabric.macvlan_node import MacvlanPlace
from tests.fabric.masq_node import speaks, tcp_stream
from tests.fabric.netns import Lab, Namespace
from tests.fabric.node import BIN
from tests.fabric.parent_node import PLANS as PARENT_PLANS
from tests.fabric.policy_node import PLANS
from tests.fabric.policy_site import Cluster, PolicySite, namespace, node_object, peers, pod, policy
from tests.fabric.process import Process, poll
from tests.fabric.release import Release
from tests.fabric.traffic import Forbidden, traffic

pytestmark = pytest.mark.needs("nft", "mount", "make", "clang-16", "llvm-strip-16", "clang-format-16")

ALLOWED, FORBIDDEN = 9000, 9001
RATE = 250  # connections a second, in each of up to two places
CONNECTIONS = 150  # made in each place before and after an event
SOON_S = 20.0
KILLS, KILL_LATER_S = 6, 0.05
OBJECTS = ("policy", "macvlan", "ipvlan")
ROOM = {
    "POLICY_PEERS": ("PEER.size, 131072", "PEER.size, 65536"),
    "POLICY_LINKS": ("LINK.size, 4096", "LINK.size, 8192"),
    "MACVLAN_STATIONS": ("STATION.size, 1024", "STATION.size, 2048"),
}
"""By the name in C: the number of entries in Python, before and after."""


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bgpd` of a release that has some of each kind of the daemon's maps otherwise: key, value, or room."""
    release = Release(tmp_path_factory.mktemp("other"))
    release.replace_c(
        "include/bgpd/layout.h",
        ("	__u32 cookie;	  /* tells the origin of the rule */\n", "	__u32 cookie;\n	__u32 more;\n"),
        ("sizeof(struct policy_rule) == 12", "sizeof(struct policy_rule) == 16"),
        ("	__u32 class;\n};\n\nstruct policy_rule {", "	__u32 class;\n	__u32 more;\n};\n\nstruct policy_rule {"),
        *(
            (f"#define {name} {before.split()[1]}", f"#define {name} {after.split()[1]}")
            for name, (before, after) in ROOM.items()
        ),
    )
    release.replace(
        "datapath/layout.py",
        ('"cookie": "I"},\n    "policy_port_key"', '"cookie": "I", "more": "4x"},\n    "policy_port_key"'),
        ('"class": "I"},\n    "policy_rule":', '"class": "I", "more": "4x"},\n    "policy_rule":'),
        *ROOM.values(),
    )
    return release.build(OBJECTS)


@pytest.fixture(scope="module")
def forgetful(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bgpd` of a release that has room for fewer flows, so that those of another mean nothing to it."""
    release = Release(tmp_path_factory.mktemp("forgetful"))
    release.replace_c("include/bgpd/layout.h", ("#define POLICY_FLOWS 65536", "#define POLICY_FLOWS 32768"))
    release.replace("datapath/layout.py", ("FLOW.size, 65536", "FLOW.size, 32768"))
    return release.build(OBJECTS)


Pair: TypeAlias = tuple[Namespace, Namespace, str, str]
"""Client and server, and the addresses of both."""


class VethSite(PolicySite):
    """Pods of a bridge that hands its frames to nobody, and routed ones."""

    def __init__(self, lab: Lab, bpffs: Path) -> None:
        super().__init__(lab, bpffs, br_netfilter=False)

    @property
    def pairs(self) -> list[Pair]:
        pods, (version4, version6) = self.place.pods, PLANS
        return [(pods["a"], pods["b"], version4.a, version4.b), (pods["c"], pods["d"], version6.c, version6.d)]

    def attach(self) -> None:
        """They need not be."""


class ParentSite(Cluster):
    """Pods that were attached to the node's uplink."""

    def __init__(self, place: MacvlanPlace, bpffs: Path) -> None:
        self.place = place
        super().__init__(place.node, bpffs)
        self.chain()
        self.put(node_object(self.node.name, place.addresses("node")), namespace("x"))
        self.put(*(pod("x", name, place.addresses(name)) for name in place.pods))

    @property
    def pairs(self) -> list[Pair]:
        return [(self.place.pods["a"], self.place.pods["b"], plan.a, plan.b) for plan in PARENT_PLANS]

    def close(self) -> None:
        """Nothing but what the lab closes."""

    def attach(self) -> None:
        """By the plugin."""
        for name, each in self.place.pods.items():
            told = [f"{plan.of(name)}/{plan.length}" for plan in PARENT_PLANS]
            names = f"K8S_POD_NAMESPACE=x;K8S_POD_NAME={name}"
            assert plugin.add(self.node, each, self.place.mac(name), told, names=names) == 0, self.problems()


Site: TypeAlias = VethSite | ParentSite


def macvlans(lab: Lab, bpffs: Path) -> Site:
    return ParentSite(MacvlanPlace(lab, MacvlanMode.BRIDGE), bpffs)


@pytest.fixture(params=[VethSite, macvlans], ids=["veth", "macvlan"])
def site(lab: Lab, bpffs: Path, request: pytest.FixtureRequest) -> Iterator[Site]:
    """With this release's daemon at work, and the pods attached."""
    make: Callable[[Lab, Path], Site] = request.param
    with contextlib.closing(make(lab, bpffs)) as made:
        made.put(
            policy("x", "in", ingress=[{"from": [peers("a", "c")], "ports": [{"port": ALLOWED}]}]),
            policy("x", "out", egress=[{"to": [peers("b", "d")], "ports": [{"port": ALLOWED}]}], types=["Egress"]),
        )
        made.start()
        made.attach()
        yield made


@contextlib.contextmanager
def flowing(site: Site) -> Iterator[Callable[[], None]]:
    """Traffic; what is yielded waits for more of it."""
    with contextlib.ExitStack() as stack:
        going = [stack.enter_context(traffic(*pair, ALLOWED, FORBIDDEN, RATE)) for pair in site.pairs]

        def wait_more() -> None:
            for each in going:
                each.wait_more(CONNECTIONS)

        wait_more()
        yield wait_more


def test_it_takes_over_and_back(site: Site, other: Path) -> None:
    """Nothing is left of the maps before."""
    with flowing(site) as wait_more:
        for program in (other, BIN / "bgpd"):
            before = replaced_maps(site)
            daemon(site).stop()
            start(site, program)
            wait_gone_over(site, before)
            wait_more()
            assert not [path.name for path in site.pins.iterdir() if path.name.endswith("_new")]
            poll(partial(all_freed, before), SOON_S, lambda: "they are there still")


def test_while_it_knows_nothing_the_old_maps_count_and_who_comes_after_a_kill_goes_on(
    site: Site, other: Path
) -> None:
    """As long as nothing of the cluster can be read its own maps are empty: nobody is to ask them."""
    manifests, away = site.node.manifests, site.node.manifests.with_name("away")
    with flowing(site) as wait_more:
        before, programs = replaced_maps(site), asked(site)
        daemon(site).stop()
        manifests.rename(away)
        for end in ("stop", "kill"):
            start(site, other)
            site.node.wait_problem("not every Node and Pod and Namespace and NetworkPolicy has been read")
            poll(partial(is_renewed, site, before), SOON_S, lambda: site.node.bgpd("status", check=False))
            wait_more()
            assert asked(site) == programs
            getattr(daemon(site), end)()
            wait_more()
        away.rename(manifests)
        start(site, other)
        wait_gone_over(site, before)
        wait_more()


def test_an_emptied_source_after_a_kill_opens_nothing(site: Site, other: Path) -> None:
    """Who comes then finds maps of its own that never had anything, and old programs that are asked."""
    manifests, away = site.node.manifests, site.node.manifests.with_name("away")
    with flowing(site) as wait_more:
        before, programs = replaced_maps(site), asked(site)
        daemon(site).stop()
        manifests.rename(away)
        start(site, other)
        poll(partial(is_renewed, site, before), SOON_S, lambda: site.node.bgpd("status", check=False))
        daemon(site).kill()
        manifests.mkdir()
        start(site, other)
        site.node.wait_problem("there is no Pod; is the source right? The rules in the kernel stay as they are")
        wait_more()
        assert asked(site) == programs
        (away / site.file.name).rename(site.file)
        wait_gone_over(site, before)
        wait_more()


def test_one_that_is_killed_on_the_way_is_followed_by_another_of_any_release(site: Site, other: Path) -> None:
    with flowing(site) as wait_more:
        for turn in range(KILLS):
            before = replaced_maps(site)
            daemon(site).kill()
            start(site, BIN / "bgpd" if turn % 2 else other)
            poll(partial(is_renewed, site, before), SOON_S, lambda: site.node.bgpd("status", check=False))
            time.sleep(turn * KILL_LATER_S)
        before = replaced_maps(site)
        daemon(site).kill()
        start(site, BIN / "bgpd" if KILLS % 2 else other)
        wait_gone_over(site, before)
        wait_more()


def test_connections_go_on_where_the_table_of_flows_is_new(site: Site, forgetful: Path) -> None:
    """As those of pods that ran before us, though we have run for long: the server speaks first."""
    with contextlib.ExitStack() as stack:
        opened = []
        for client, server, source, to in site.pairs:
            knocking = Forbidden(client, server, source, FORBIDDEN, RATE, (to, FORBIDDEN))
            stack.callback(knocking.stop)
            opened.append(stack.enter_context(tcp_stream(client, server, to, ALLOWED)))
        assert all(speaks(dialer, accepted) for dialer, accepted in opened)
        site.map("policy_seeding").update({bytes(4): (1).to_bytes(4, sys.byteorder)})
        before = {pinned_maps(site)[name] for name in layout.TOGETHER[1]}
        daemon(site).stop()
        start(site, forgetful)
        wait_gone_over(site, before)
        for dialer, accepted in opened:
            assert speaks(accepted, dialer)


def daemon(site: Site) -> Process:
    assert site.node.daemon is not None
    return site.node.daemon


def start(site: Site, program: Path) -> None:
    site.node.program = program
    site.node.start_daemon()


def replaced_maps(site: Site) -> set[int]:
    """The numbers of the pinned maps that the other release has in another layout, and of those that go with them."""
    names = {*layout.TOGETHER[0], "policy_links", "macvlan_stations"}
    return {number for name, number in pinned_maps(site).items() if name in names}


def pinned_maps(site: Site) -> dict[str, int]:
    found = {name: pins.any_map(site.pins / name) for name in layout.MAPS}
    return {name: each.id for name, each in found.items() if each is not None}


def is_renewed(site: Site, before: set[int]) -> bool:
    return not before & replaced_maps(site)


def asked(site: Site) -> set[int]:
    """The numbers of all programs that packets meet."""
    found = {number for table in site.tables().values() for number in table.ids}
    for path in site.pins.glob("*gress_at_*"):
        link = links.pinned(path)
        assert link is not None
        found.add(libbpf.link_info(link.fd).prog_id)
    return found


def wait_gone_over(site: Site, before: set[int]) -> None:
    """Until every program that is asked reads maps that are pinned, and none of those before."""

    def gone_over() -> bool:
        read = {number for program in asked(site) for number in maps_of(program)}
        return read <= {*pinned_maps(site).values()} and not read & before

    poll(gone_over, SOON_S, lambda: site.node.bgpd("status", check=False))


def maps_of(program: int) -> frozenset[int]:
    found = jump.known(program)
    return frozenset() if found is None else frozenset(found.maps)


def all_freed(maps: set[int]) -> bool:
    found = [libbpf.library().bpf_map_get_fd_by_id(number) for number in maps]
    for fd in found:
        if fd >= 0:
            os.close(fd)
    return all(fd < 0 for fd in found)
