"""What it costs to have it running: resident memory, processor time when nothing happens, time to start.

Memory is VmRSS, shared pages included, as `ps` shows it; of several processes it is the sum. PSS divides a page
among all that have it (proc(5)), here also among what measures. Processor time is read from the scheduler, in
nanoseconds and over all threads, because a tick of 10 ms is a tenth of what is looked for.
"""

from __future__ import annotations

import socket
import statistics
import time
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

from tests.benchmarks.contenders import BirdScript, Contender, GobgpScript, Ours, bgp_options
from tests.benchmarks.report import Result
from tests.fabric.bird import Bird
from tests.fabric.node import BgpdNode
from tests.fabric.process import poll
from tests.fabric.topology import NodePlace, TwoTorFabric

IDLE_S = 30.0
STARTS = 5


def rss_mb(pids: Iterable[int]) -> float:
    return _memory_mb(pids, "status", "VmRSS:")


def pss_mb(pids: Iterable[int]) -> float:
    return _memory_mb(pids, "smaps_rollup", "Pss:")


def _memory_mb(pids: Iterable[int], file: str, field: str) -> float:
    """The sum of a field in kB that such a file in /proc has for each process."""
    lines = (line for pid in pids for line in Path(f"/proc/{pid}/{file}").read_text().splitlines())
    return sum(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def cpu_s(pids: Iterable[int]) -> float:
    """Processor time so far, user and system."""
    files = (file for pid in pids for file in Path(f"/proc/{pid}/task").glob("*/schedstat"))
    return sum(int(file.read_text().split()[0]) for file in files) / 1e9


def memory(ours: Ours, bird: BirdScript, gobgp: GobgpScript) -> list[Result]:
    scripts = {f"{it.name.partition('+')[0]}'s script": it.pids()["daemon"] for it in (bird, gobgp)}
    speakers = {it.name.partition("+")[0]: it.pids()["speaker"] for it in (bird, gobgp)}
    found = []
    for what, goal, beside in (("daemon", 75.0, scripts), ("speaker", 45.0, speakers)):
        pids = ours.pids()[what]
        for name, measure, bound in (("rss", rss_mb, goal), ("pss", pss_mb, None)):
            others = {other: measure(some) for other, some in beside.items()}
            found.append(Result(name=f"{what}_{name}_mb", value=measure(pids), unit="MB", goal=bound, beside=others))
    return found


def idle(contenders: Iterable[Contender], seconds: float = IDLE_S) -> list[Result]:
    """Percent of one core, while the node's sessions are up and nothing changes."""
    watched = {it.name: it.pids() for it in contenders}
    before = {name: {what: cpu_s(some) for what, some in pids.items()} for name, pids in watched.items()}
    time.sleep(seconds)
    used = {
        name: {what: 100 * (cpu_s(some) - before[name][what]) / seconds for what, some in pids.items()}
        for name, pids in watched.items()
    }
    return [
        Result(
            name=f"{what}_idle_cpu_percent",
            value=used["bgpd"][what],
            unit="%",
            goal=goal,
            beside={name: shares[what] for name, shares in used.items() if name != "bgpd"},
        )
        for what, goal in (("daemon", 0.3), ("speaker", None))
    ]


# --- starting ---------------------------------------------------------------------------------------------


def starts(node: BgpdNode) -> list[Result]:
    """The daemon of `node` started again and again beside its speaker; medians. It runs in the end."""
    ready, readyz = zip(*(_start(node) for _ in range(STARTS)), strict=True)
    return [
        Result(name="start_to_ready_s", value=statistics.median(ready), unit="s", goal=1.0),
        Result(name="start_to_readyz_s", value=statistics.median(readyz), unit="s"),
    ]


def cold(fabric: TwoTorFabric, node: BgpdNode, place: NodePlace) -> Result:
    """A node that boots: nothing runs, to the route at the first ToR. Beside it a BIRD on another node."""
    prefix, tor = place.pod_cidrs[0], fabric.tors[0].speaker
    bird_place = next(it for it in fabric.nodes if it is not place)
    bird_prefix = "188.188.200.0/24"
    bird = Bird(bird_place.namespace, bgp_options(fabric, bird_place), name="cold")
    began = time.monotonic()
    config = ["--config", str(node.config_file)]  # both at once, as systemd starts them
    node.speaker = node.namespace.popen([str(node.program), "speaker", "run", *config], name="speaker")
    node.daemon = node.namespace.popen([str(node.program), "run", *config], name="bgpd")
    tor.wait_route(prefix, peer=place.address)
    ours = time.monotonic() - began
    bird.reconfigure(originate=(bird_prefix,))
    began = time.monotonic()
    bird.start()
    tor.wait_route(bird_prefix, peer=bird_place.address)
    theirs = time.monotonic() - began
    bird.stop()
    return Result(name="cold_start_to_route_s", value=ours, unit="s", beside={"bird": theirs})


def _start(node: BgpdNode) -> tuple[float, float]:
    """Seconds to sd_notify's READY=1 and to /readyz answering 200."""
    if node.daemon is not None:
        node.daemon.stop()
    path = node.directory / "notify.sock"
    path.unlink(missing_ok=True)
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as notify:
        notify.bind(str(path))
        notify.settimeout(20.0)
        argv = [str(node.program), "run", "--config", str(node.config_file)]
        began = time.monotonic()
        node.daemon = node.namespace.popen(argv, name="bgpd", env={"NOTIFY_SOCKET": str(path)})
        while b"READY=1" not in notify.recv(4096).split(b"\n"):
            pass
        ready = time.monotonic() - began
        poll(lambda: _is_ready(node), 20.0, lambda: "/readyz does not answer 200", every_s=0.002)
        return ready, time.monotonic() - began


def _is_ready(node: BgpdNode) -> bool:
    with closing(node.namespace.socket(socket.AF_INET, socket.SOCK_STREAM)) as channel:
        try:
            channel.connect(("127.0.0.1", 9179))
            channel.sendall(b"GET /readyz HTTP/1.0\r\n\r\n")
            return channel.recv(64).split(b" ")[1:2] == [b"200"]
        except OSError:
            return False
