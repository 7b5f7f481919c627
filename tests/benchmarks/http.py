"""New connections as a web client makes them: `wrk` asks, `nginx` answers, one HTTP request on each TCP connection.

This decides how the two are run and reads what wrk says. Both are as they come: wrk's two threads with ten
connections at a time, as many nginx workers as there are processors, the page that Debian ships. Only keep-alive is
off, because new connections are what is counted, and the access log, because it is not.
"""

from __future__ import annotations

import re
import resource
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

from tests.benchmarks.footprint import cpu_s
from tests.benchmarks.masq_stage import FAR, Wire
from tests.benchmarks.turns import Sample, Samples, in_turns
from tests.fabric.process import Process, poll

PROGRAMS = ("nginx", "wrk")
PORT = 80
ROUNDS = 12
_SECONDS = 1  # the shortest that wrk takes
_UNITS_US = {"us": 1.0, "ms": 1e3, "s": 1e6}
_PAGES = "/usr/share/nginx/html"


@dataclass(frozen=True, slots=True)
class Load:
    """What wrk says of a run; `latency_us` is the mean, from connecting to the whole answer."""

    requests: int
    per_second: float
    latency_us: float


def taken(wires: Mapping[str, Wire], destination: Callable[[str], IPv4Address], rounds: int = ROUNDS) -> Samples:
    """Where each contender's next turn goes. RuntimeError: not every connection was answered."""
    servers = {name: _serve(wire) for name, wire in wires.items()}
    found = in_turns(wires, lambda name, wire: _turn(wire, servers[name], destination(name)), rounds)
    for server in servers.values():
        server.stop()
    return found


def _serve(wire: Wire) -> Process:
    """nginx in the outside, on all addresses that are its."""
    directory = wire.outside.lab.directory / f"{wire.name}-nginx"
    directory.mkdir()
    file = directory / "nginx.conf"
    file.write_text(
        f"daemon off; worker_processes auto; pid {directory}/pid; error_log stderr;\n"
        f"events {{}}\nhttp {{ access_log off; server {{ listen {PORT}; root {_PAGES}; }} }}\n"
    )
    server = wire.outside.popen(["nginx", "-c", str(file)], name="nginx")
    poll(lambda: wire.outside.call(_answers), 10.0, server.log_tail)
    return server


def _turn(wire: Wire, server: Process, destination: IPv4Address) -> Sample:
    before = _used_s(server)
    target = f"http://{destination}:{PORT}/"
    said = wire.pod.run(["wrk", "--duration", f"{_SECONDS}s", "--header", "Connection: close", target]).stdout
    load = read(said)
    return Sample(load.per_second, 1e6 * (_used_s(server) - before) / load.requests, load.latency_us)


def read(said: str) -> Load:
    """RuntimeError: wrk tells of errors, or something that is not known."""
    requests = re.search(r"^ *(\d+) requests in ", said, re.MULTILINE)
    rate = re.search(r"^Requests/sec: *([0-9.]+)$", said, re.MULTILINE)
    latency = re.search(r"^ *Latency +([0-9.]+)(us|ms|s) ", said, re.MULTILINE)
    if requests is None or rate is None or latency is None or "errors" in said or "Non-2xx" in said:
        raise RuntimeError(f"wrk does not tell of answers only:\n{said}")
    return Load(int(requests[1]), float(rate[1]), float(latency[1]) * _UNITS_US[latency[2]])


def _answers() -> bool:
    try:
        socket.create_connection((str(FAR[1]), PORT), 1.0).close()
    except OSError:
        return False
    return True


def _used_s(server: Process) -> float:
    """Processor time so far, of the server's workers and of what we have run to its end, which wrk is of."""
    workers = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return cpu_s(map(int, workers)) + ended.ru_utime + ended.ru_stime
