"""Every case of `tests.cyclonus` through the maps and the program of this kernel, as the daemon writes them."""

from __future__ import annotations

import asyncio
import functools
import struct
from collections import Counter
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from bgpd.datapath.layout import PolicyVerdict
from bgpd.datapath.loader import Installed
from bgpd.model.outcome import DONE
from bgpd.model.policy import Protocol
from bgpd.policy.compile import Compiler
from bgpd.policy.map import KEY, PolicyMaps, Stages
from bgpd.runtime.diff import Change
from tests import cyclonus
from tests.bpf.packets import ipv4
from tests.bpf.program import run_opened
from tests.cyclonus import ALLOWED, snapshot
from tests.fabric.rules_by_hand import verdicts

PASS, DROP = 0, 1
CLIENT_PORT = 40000


@cyclonus.needed
def test_every_row_of_every_case(policy: Installed, directory: Path) -> None:
    """What passes by the program's return, and which of both directions says no by its counters."""
    assert asyncio.run(walk(policy, PolicyMaps(policy, directory))) == cyclonus.ROWS


async def walk(policy: Installed, maps: PolicyMaps) -> int:
    rows = 0
    for case in cyclonus.cases():
        await maps.observe()  # what the case before has left is gone then
        compiler = Compiler()
        for number, step in enumerate(case["steps"]):
            now = snapshot(step)
            assert await maps.apply([Change(KEY, Stages(compiler.advance(now)), None)]) == [DONE]
            await maps.settled()
            rows += check(policy, step, f"case {case['i']} ({case['desc']}), step {number}")
        await maps.apply([Change(KEY, None, None)])
    return rows


def check(policy: Installed, step: dict[str, Any], where: str) -> int:
    """The number of rows, a pod to itself left out."""
    program, counters = policy.programs["policy"].fd, policy.maps["policy_verdicts"]
    addresses = {f"{pod['Namespace']}/{pod['Name']}": pod["IP"] for pod in step["pods"]}
    before, denied = verdicts(counters), Counter[PolicyVerdict]()
    rows = list(cyclonus.rows(step))
    for row in rows:
        begun = frame(addresses[row.client], addresses[row.server], row.protocol, row.port)
        said = run_opened(program, begun).value
        assert said == (PASS if row.combined == ALLOWED else DROP), f"{where}: {row}"
        if said == PASS:
            assert run_opened(program, begun).value == PASS, f"{where}: {row}, remembered"
        if row.egress != ALLOWED:
            denied[PolicyVerdict.DENIED_EGRESS] += 1
        elif row.ingress != ALLOWED:
            denied[PolicyVerdict.DENIED_INGRESS] += 1
    counted = Counter(verdicts(counters)) - Counter(before)
    assert Counter({each: counted[each] for each in counted if each >= PolicyVerdict.DENIED_EGRESS}) == denied, where
    return len(rows)


@functools.cache  # the same few pods in nearly every step: to make it takes longer than to judge it
def frame(source: str, to: str, protocol: str, port: int) -> bytes:
    """A new flow's first packet, long enough for the header of any of the protocols."""
    ports = struct.pack("!HH", CLIENT_PORT, port)
    rest = ports + bytes(9) + b"\x02" + bytes(6)
    return ipv4(IPv4Address(to), rest, protocol=Protocol[protocol], source=IPv4Address(source))
