"""What judging a packet costs: the programs on one packet in the kernel (BPF_PROG_TEST_RUN), with few and many rules.

The maps have what the daemon's own compiler makes of a tenant (`policy_cluster`), written by its own code. A number
is the mean over many peers of the best of several runs each: whatever else the machine does only adds. Nothing is
subtracted; what the kernel itself takes for a run is told as `test_run_ns`, by a program that only returns.

`known_flow` is a packet between two addresses that the CPU has seen under the revision of the maps, the dearer
direction. Programs remember addresses and rules, and no flows: a connection that begins is known if its ends are.
`new_flow` is one between two that it has not, to which rules have let others of their kind pass: the revision is one
under which both have one place, which each takes from the other, so that this stays so however often the packet
comes. `first_of_its_kind` is such a packet that is the first of which rules say so, by a program that does not find
that it was not. `changing_rules` is one while nothing that is remembered counts. A bridge without br_netfilter has a
program that tracks flows itself. There a first packet cannot be repeated: `policy_first` measures it.
"""

from __future__ import annotations

import asyncio
import statistics
import struct
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from random import Random
from typing import TypeAlias, TypeVar

from bgpd.datapath import layout, loader
from bgpd.datapath.libbpf import check, library
from bgpd.datapath.loader import Installed
from bgpd.kube.networkpolicy import NETWORK_POLICY
from bgpd.kube.parse import NAMESPACE, POD, Kind
from bgpd.model.policy import Snapshot
from bgpd.model.prefix import Address
from bgpd.policy.compile import Compiler
from bgpd.policy.map import KEY, PolicyMaps, Stages
from bgpd.runtime.diff import Change
from tests.benchmarks.masq_packet import FLAT, flatness
from tests.benchmarks.policy_cluster import PORT, Tenant
from tests.benchmarks.report import Result
from tests.bpf.memo import forget, holds, sharing
from tests.bpf.packets import SOURCE_V4, TCP, ipv4
from tests.bpf.program import run
from tests.bpf.source import Source
from tests.fabric.policy_site import Object, policy

K = TypeVar("K")
T = TypeVar("T")

SAMPLE, RUNS, REPEAT = 100, 5, 20_000
KNOWN_NS, NEW_NS = 100.0, 150.0
NODE = "worker1"
_POD = str(SOURCE_V4)
TENANTS: Mapping[str, Tenant] = {
    "1_policy_10_peers": Tenant(NODE, (_POD,), 1),
    "1_policy_10k_peers": Tenant(NODE, (_POD,), 1, peers_each=10_000),
    "1k_policies_10k_peers": Tenant(NODE, (_POD,), 1_000),
}
BLOCKS = 1_000
_Case: TypeAlias = tuple[str, str]  # what is in the maps, and the program
_EMPTY: _Case = "", "nothing"
_ACK, SYN = 0x10, 0x02
_SOCKET_FILTER = 1  # enum bpf_prog_type
_RETURN_0 = struct.pack("=BBhi", 0xB7, 0, 0, 0) + struct.pack("=BBhi", 0x95, 0, 0, 0)


def results(place: Path) -> list[Result]:
    """With the shipped object, pinned at `place`."""
    rand = Random(1)
    installed = {name: _installed(place / name, list(it.objects())) for name, it in TENANTS.items()}
    programs = {name: {which: each.pin for which, each in it.programs.items()} for name, it in installed.items()}
    peers = {name: [peer for each in range(it.policies) for peer in it.peers(each)] for name, it in TENANTS.items()}
    frames = {name: [frame(peer) for peer in rand.choices(some, k=SAMPLE)] for name, some in peers.items()}
    blocks = _installed(place / "blocks", list(_blocks()))
    in_blocks = [frame(str(each[1])) for each in rand.choices(_networks(), k=SAMPLE)]
    cases = {(name, "policy"): (pins["policy"], frames[name]) for name, pins in programs.items()}
    cases |= {(name, "policy_bridge"): (pins["policy_bridge"], frames[name]) for name, pins in programs.items()}
    cases |= {
        (name, "policy_reply"): (pins["policy_reply"], [*map(_reply, frames[name])])
        for name, pins in programs.items()
    }
    cases[_EMPTY] = _returning(place / "empty"), [frame(_POD)]
    taken = _mean_ns(cases)
    most = list(TENANTS)[-1]
    asking = _asking(place / "asking", list(TENANTS[most].objects()))
    measured = {name: (it, frames[name]) for name, it in installed.items()}
    new = _new_ns(measured | {"blocks": (blocks, in_blocks), "asking": (asking, frames[most])})
    installed[most].maps["policy_revision"].update({bytes(4): layout.REVISION.pack(0)})
    judged = _mean_ns({(most, "policy"): cases[most, "policy"]})[most, "policy"]
    known = {name: max(taken[name, "policy"], taken[name, "policy_reply"]) for name in TENANTS}
    bridged = {name: taken[name, "policy_bridge"] for name in TENANTS}
    return [
        Result(name="test_run_ns", value=taken[_EMPTY], unit="ns"),
        Result(name="known_flow_ns", value=known[most], unit="ns", goal=KNOWN_NS),
        Result(name="new_flow_ns", value=new[most], unit="ns", goal=NEW_NS),
        Result(name="bridge_known_flow_ns", value=bridged[most], unit="ns", goal=KNOWN_NS),
        Result(name=f"new_flow_{BLOCKS}_blocks_ns", value=new.pop("blocks"), unit="ns"),
        Result(name="first_of_its_kind_ns", value=new.pop("asking"), unit="ns"),
        Result(name="changing_rules_ns", value=judged, unit="ns"),
        *(Result(name=f"known_flow_{name}_ns", value=value, unit="ns") for name, value in known.items()),
        *(Result(name=f"new_flow_{name}_ns", value=value, unit="ns") for name, value in new.items()),
        flatness("known_flow_flatness", known, FLAT),
        flatness("new_flow_flatness", new, FLAT),
        flatness("bridge_known_flow_flatness", bridged, FLAT),
    ]


# --- rules ----------------------------------------------------------------------------------------------------------


def _networks() -> list[IPv4Network]:
    return list(IPv4Network("203.0.0.0/8", strict=False).subnets(new_prefix=24))[:BLOCKS]


def _blocks() -> Iterator[Object]:
    """The same pod, with one policy of many address blocks instead."""
    tenant = Tenant(NODE, (_POD,), 0)
    yield from tenant.objects()
    blocks = [{"ipBlock": {"cidr": str(each)}} for each in _networks()]
    rule = {"to": blocks, "ports": [{"protocol": "TCP", "port": PORT}]}
    yield policy(tenant.name, "blocks", types=["Egress"], egress=[rule])


def _installed(directory: Path, objects: Sequence[Object], file: Path | None = None) -> Installed:
    """With these objects in the maps, and a revision."""
    pods = _models(POD, objects)
    local: dict[str, tuple[Address, ...]] = {key: () for key, each in pods.items() if each.node == NODE}
    snapshot = Snapshot(pods, _models(NAMESPACE, objects), _models(NETWORK_POLICY, objects), local)
    installed = loader.install(file or loader.shipped("policy"), directory)
    asyncio.run(_written(PolicyMaps(installed, directory), Change(KEY, Stages(Compiler().advance(snapshot)), None)))
    return installed


def _asking(place: Path, objects: Sequence[Object]) -> Installed:
    """With programs that write down what rules let pass, and never find it."""
    with tempfile.TemporaryDirectory() as directory:
        source = Source(Path(directory))
        source.replace("include/bgpd/memo.h", "passed->seal == seal", "passed->seal != seal")
        return _installed(place, objects, source.build("policy"))


async def _written(maps: PolicyMaps, change: Change[str, Stages]) -> None:
    await maps.apply([change])
    await maps.settled()


def _models(kind: Kind[T], objects: Sequence[Object]) -> dict[str, T]:
    raw = (kind.convert(each) for each in objects if each["kind"] == kind.name)
    return {kind.key(each): kind.to_model(each) for each in raw}


# --- packets --------------------------------------------------------------------------------------------------------


def frame(to: str, port: int = 40_000, flags: int = _ACK, source: IPv4Address = SOURCE_V4) -> bytes:
    """Of the pod to a peer; as a rule in the middle of a connection."""
    header = struct.pack("!HHIIBBHHH", port, PORT, 1, 1, 5 << 4, flags, 65535, 0, 0)
    return ipv4(IPv4Address(to), header, protocol=TCP, source=source)


def _reply(frame: bytes) -> bytes:
    return frame[:26] + frame[30:34] + frame[26:30] + frame[36:38] + frame[34:36] + frame[38:]


def _mean_ns(cases: Mapping[_Case, tuple[Path, Sequence[bytes]]]) -> dict[_Case, float]:
    """They take turns, so that what the machine does meanwhile hits them all. RuntimeError: a packet is dropped."""
    taken: dict[_Case, list[list[int]]] = {name: [] for name in cases}
    for _ in range(RUNS):
        for name, (pin, frames) in cases.items():
            taken[name].append([_ns(pin, frame) for frame in frames])
    return _best(taken)


def _new_ns(cases: Mapping[str, tuple[Installed, Sequence[bytes]]]) -> dict[str, float]:
    """As `_mean_ns`, of packets both ends of which are looked up. RuntimeError too: they are not."""
    rand = Random(1)
    revisions = {frame: sharing(*_ends(frame), rand) for _, frames in cases.values() for frame in frames}
    taken: dict[str, list[list[int]]] = {name: [] for name in cases}
    for _ in range(RUNS):
        for name, (installed, frames) in cases.items():
            runs = []
            for frame in frames:
                installed.maps["policy_revision"].update({bytes(4): layout.REVISION.pack(revisions[frame])})
                forget(installed, _ends(frame)[0], revisions[frame])
                runs.append(_ns(installed.programs["policy"].pin, frame))
                client, server = (holds(installed, end, revisions[frame]) for end in _ends(frame))
                if client or not server:
                    raise RuntimeError(f"{name}: the ends of {frame.hex()} have not taken one place from each other")
            taken[name].append(runs)
    return _best(taken)


def _ns(pin: Path, frame: bytes) -> int:
    """What the program takes for this packet, which it lets pass."""
    taken = run(pin, frame, REPEAT)
    if taken.value:
        raise RuntimeError(f"{pin} drops a packet that it should let pass")
    return taken.duration_ns


def _best(taken: Mapping[K, Sequence[Sequence[int]]]) -> dict[K, float]:
    """The mean over packets of the best of the rounds each."""
    return {name: statistics.fmean(map(min, zip(*rounds, strict=True))) for name, rounds in taken.items()}


def _ends(frame: bytes) -> tuple[IPv4Address, IPv4Address]:
    return IPv4Address(frame[26:30]), IPv4Address(frame[30:34])


def _returning(pin: Path) -> Path:
    """The pin of a program that only returns."""
    code = library().bpf_prog_load(_SOCKET_FILTER, b"returns", b"GPL", _RETURN_0, len(_RETURN_0) // 8, None)
    check("pinning a program", library().bpf_obj_pin(check("loading a program", code), str(pin).encode()))
    return pin
