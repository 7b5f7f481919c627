"""The lab of the option tests: one node that runs the product, one speaker, a session for each case.

This decides addresses and cables, how a case becomes a peer in bgpd.yaml and a neighbor of the speaker, and
what may be asked about it. It does not decide which options there are: those are the other `test_options_*`.
Every case has an address of its own on both ends, so one start of the programs serves many sessions and no
session knows of another.

```
 node  eth0 10.0.0.100+  fd00::100+ --------------------------- 10.0.0.10+  fd00::10+ eth0  tor
       eth1 10.0.1.100+ --- 10.0.1.254 router 10.0.2.254 ------ 10.0.2.10+            eth1
```
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import pytest

from tests.fabric.bird import Bird
from tests.fabric.frr import Frr
from tests.fabric.gobgp import Gobgp
from tests.fabric.netns import Lab, Namespace, missing
from tests.fabric.node import BgpdNode
from tests.fabric.peer import IPV4, IPV6, Neighbor, Options, PeerSession, ReceivedRoute, Speaker
from tests.fabric.process import poll
from tests.fabric.topology import NodePlace

ASN = 64512
V4, V6 = "188.188.0.0/24", "fd00:188:188::/64"
SPEAKERS: tuple[type[Speaker], ...] = (Bird, Frr, Gobgp)
UP_S = 30.0  # a session is up within a second or two; GoBGP keeps one that failed once idle for five


class Place(Enum):
    """Where both ends of a session are: as formats of the speaker's address and of the node's."""

    NEAR = ("10.0.0.{}", "10.0.0.{}")
    NEAR6 = ("fd00::{}", "fd00::{}")
    FAR = ("10.0.2.{}", "10.0.1.{}")

    def tor(self, index: int) -> str:
        return self.value[0].format(10 + index)

    def node(self, index: int) -> str:
        return self.value[1].format(100 + index)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One session. `ours` is added to the peer in bgpd.yaml (None takes a key out), `theirs` to the speaker's
    neighbor, `extra` too, in the speaker's own language, by its kind. `attributes` are those of the
    advertisement; None: nothing is announced to this peer. `password` is what our password file holds; None: no
    such file.
    """

    name: str
    ours: Mapping[str, Any] = field(default_factory=dict)
    theirs: Mapping[str, Any] = field(default_factory=dict)
    extra: Mapping[str, str] = field(default_factory=dict)
    attributes: Mapping[str, Any] | None = field(default_factory=dict)
    place: Place = Place.NEAR
    password: str | None = None


class Bench:
    """A lab with every case in it. Sessions are named as their cases are."""

    def __init__(
        self, lab: Lab, kind: type[Speaker], cases: Sequence[Case], tor: Mapping[str, Any], bgp: Mapping[str, Any]
    ) -> None:
        self.kind, self._directory = kind, lab.directory
        self._index = {case.name: index for index, case in enumerate(cases)}
        self._cases = {case.name: case for case in cases}
        self.tor = lab.namespace("tor")
        self.place = NodePlace(
            name="worker1",
            address=Place.NEAR.node(0),
            address6=Place.NEAR6.node(0),
            pod_cidrs=(V4, V6),
            namespace=lab.namespace("node"),
        )
        self.router = _wire(lab, self.tor, self.place.namespace, cases)
        told: dict[str, Any] = {"asn": ASN, "router_id": Place.NEAR.tor(0), **tor}
        listen = int(bgp.get("listenPort", 0)) or 179
        neighbors = tuple(self._neighbor(case, bgp.get("localASN", ASN), listen) for case in cases)
        self.speaker = kind(self.tor, Options(**told, neighbors=neighbors))
        self.node = BgpdNode(self.place.namespace, self.place.name, self._bgp(bgp, self.speaker.options))
        for case in cases:
            if case.password is not None:
                self.write_password(case.name, case.password)

    def start(self) -> Bench:
        """The speaker first: FRR is configured line by line, and a session could form between two of them."""
        self.speaker.start()
        self.allocate()
        self.node.start()
        return self

    def allocate(self, **labels: str) -> None:
        """Writes the Node object with these labels."""
        self.node.allocate(self.place, *self.place.pod_cidrs, labels=labels)

    # --- what is configured

    def ours(self, name: str) -> str:
        """The node's address of this session: how the speaker knows it."""
        return self._cases[name].place.node(self._index[name])

    def theirs(self, name: str) -> str:
        """The speaker's address of this session."""
        return self._cases[name].place.tor(self._index[name])

    def password_file(self, name: str) -> Path:
        return self._directory / f"{name}.md5"

    def write_password(self, name: str, password: str) -> None:
        file = self.password_file(name)
        file.touch(mode=0o600)
        file.write_text(password + "\n")

    def change(self, name: str, **keys: Any) -> None:
        """Replaces keys of a peer in bgpd.yaml (None takes one out) and has the daemon reload."""
        peer = self.node.config["bgp"]["peers"][self._index[name]]
        peer.update(keys)
        for key in [key for key, value in peer.items() if value is None]:
            del peer[key]
        self.reload()

    def readvertise(self, name: str, **attributes: Any) -> None:
        """Replaces the attributes of what is announced to this peer, in the file and in the daemon."""
        for advertisement in self.node.config["bgp"]["advertisements"]:
            if advertisement["peers"] == [name]:
                advertisement["attributes"] = attributes
        self.reload()

    def reload(self) -> None:
        self.node.write_config()
        self.node.bgpd("reload")

    def _neighbor(self, case: Case, asn: int, port: int) -> Neighbor:
        index = self._index[case.name]
        return Neighbor(
            **{
                "address": case.place.node(index),
                "asn": case.ours.get("localASN", asn),
                "port": port,
                "local_address": case.place.tor(index),
                "hold_time_s": 90,  # so that ours is the lower one
                "keepalive_s": 30,
                "families": tuple(case.ours.get("families", (IPV6 if case.place is Place.NEAR6 else IPV4,))),
                "extra": case.extra.get(self.kind.kind, "").replace("ADDRESS", case.place.node(index)),
                **case.theirs,
            }
        )

    def _bgp(self, bgp: Mapping[str, Any], speaker: Options) -> dict[str, Any]:
        peers, advertisements = [], []
        for index, case in enumerate(self._cases.values()):
            peer: dict[str, Any] = {
                "name": case.name,
                "peerAddress": case.place.tor(index),
                "peerASN": speaker.asn,
                "peerPort": speaker.listen_port,
                "localAddress": case.place.node(index),
                "timers": {"holdTimeSeconds": 9},
                **case.ours,
            }
            if case.password is not None:
                peer["authPasswordFile"] = str(self.password_file(case.name))
            peers.append({key: value for key, value in peer.items() if value is not None})
            if case.attributes is not None:
                what = {"advertisementType": "PodCIDR", "peers": [case.name]}
                advertisements.append(what | ({"attributes": dict(case.attributes)} if case.attributes else {}))
        allow = {"allow": ["188.188.0.0/16", "fd00:188:188::/48"]}
        return {"localASN": ASN, "peers": peers, "advertisements": advertisements, "export": allow} | dict(bgp)

    # --- what is seen

    def session(self, name: str) -> PeerSession:
        """The session as the speaker reports it, once it is established."""
        try:
            return self.speaker.wait_established(self.ours(name), UP_S)
        except TimeoutError as error:
            raise TimeoutError(f"{name}: {self.row(name)}\n{error}") from None

    def route(self, name: str, prefix: str = V4) -> ReceivedRoute:
        """The path that the speaker got on this session, once it is there."""
        return self.wait_route(name, lambda route: True, prefix)

    def wait_route(self, name: str, where: Callable[[ReceivedRoute], bool], prefix: str = V4) -> ReceivedRoute:
        def probe() -> ReceivedRoute | None:
            route = self.speaker.route(prefix, self.ours(name))
            return route if route is not None and where(route) else None

        def failure() -> str:
            return f"{name}: {self.row(name)}\nthe speaker has {self.speaker.paths(prefix)}"

        return poll(probe, UP_S, failure)

    def complete(self, name: str) -> None:
        """Waits until all that there is to say was said on this session: End-of-RIB comes last."""

        def probe() -> bool:
            row = self.row(name)
            return row["state"] == "up" and set(row["families"]) == set(row["endOfRIB"])

        poll(probe, UP_S, lambda: f"{name}: {self.row(name)}")

    def row(self, name: str) -> dict[str, Any]:
        """What `bgpd peers` says about this session."""
        rows: list[dict[str, Any]] = self.node.ask("peers")
        return next(row for row in rows if row["peer"] == name)

    def shown(self, name: str, prefix: str = V4) -> dict[str, Any]:
        """What `bgpd routes` says about this prefix on this session."""
        rows: list[dict[str, Any]] = self.node.ask("routes", "--peer", name)
        return next(row for row in rows if row["prefix"] == prefix)

    def assert_down(self, name: str) -> dict[str, Any]:
        """Neither end holds the session; the row of `bgpd peers` that says so."""
        row, session = self.row(name), self.speaker.session(self.ours(name))
        assert row["state"] == "down", f"bgpd holds {name}: {row}"
        assert not session.established, f"the speaker holds {name}: {session}"
        return row


def counter(namespace: Namespace, name: str) -> int:
    """A counter of a namespace's kernel by its name in /proc/net; 0 where the kernel has none."""
    text = namespace.run(["cat", "/proc/net/netstat", "/proc/net/snmp"]).stdout
    lines = [line.split() for line in text.splitlines()]
    for names, values in zip(lines[::2], lines[1::2], strict=True):
        if name in names:
            return int(values[names.index(name)])
    return 0


def wait_counter(namespace: Namespace, name: str, at_least: int = 1) -> None:
    """Waits until the kernel has counted this so often: somebody tried, and it was refused for that."""

    def failure() -> str:
        return f"{name} stays {counter(namespace, name)} in {namespace.name}"

    poll(lambda: counter(namespace, name) >= at_least, UP_S, failure, every_s=0.1)


def benches(*cases: Case, tor: Mapping[str, Any] | None = None, **bgp: Any) -> Any:
    """A fixture: these cases with each speaker in turn, started once for all tests of a module."""

    @pytest.fixture(scope="module", params=SPEAKERS, ids=lambda kind: str(kind.kind))
    def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
        reason = missing(*request.param.programs)
        if reason is not None:
            pytest.skip(reason)
        with Lab() as lab:
            yield Bench(lab, request.param, cases, tor or {}, bgp).start()

    return bench


def _wire(lab: Lab, tor: Namespace, node: Namespace, cases: Sequence[Case]) -> Namespace | None:
    """Cables and every address; the router, which is returned, only where a session needs it."""
    lab.link(node, "eth0", tor, "eth0")
    for index in range(len(cases)):
        node.add_address("eth0", f"{Place.NEAR.node(index)}/24", f"{Place.NEAR6.node(index)}/64")
        tor.add_address("eth0", f"{Place.NEAR.tor(index)}/24", f"{Place.NEAR6.tor(index)}/64")
    if all(case.place is not Place.FAR for case in cases):
        return None
    router = lab.namespace("router", forwarding=True)
    lab.link(node, "eth1", router, "node")
    lab.link(tor, "eth1", router, "tor")
    router.add_address("node", "10.0.1.254/24")
    router.add_address("tor", "10.0.2.254/24")
    for index in range(len(cases)):
        node.add_address("eth1", f"{Place.FAR.node(index)}/24")
        tor.add_address("eth1", f"{Place.FAR.tor(index)}/24")
    node.add_route("10.0.2.0/24", via="10.0.1.254")
    tor.add_route("10.0.1.0/24", via="10.0.2.254")
    return router


bench = benches(Case(name="near"), Case(name="six", place=Place.NEAR6), Case(name="far", place=Place.FAR))


@pytest.mark.parametrize("name", ["near", "six", "far"])
def test_a_plain_session_comes_up_at_every_place_of_the_lab(bench: Bench, name: str) -> None:
    """So what keeps a session of another module from coming up is its option and not the lab."""
    assert bench.session(name).established
    assert bench.row(name)["localAddress"] == bench.ours(name)
