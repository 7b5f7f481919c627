"""Network namespaces for tests: namespaces, cables, a switch, addresses, routes.

This decides how a piece of network is made, cut and taken away again. It does not decide which network a
test needs (`topology`) nor what runs in it (`bird`, `frr`, `gobgp`). Nothing is ever connected to the
machine's own namespace: cables run only between namespaces of one lab, so no packet of a test can leave the
machine.

Names are `bgpdt-<pid>-<name>`; a lab removes what test processes left that no longer exist when it
starts.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from tests.fabric.process import Process, run, spawn

T = TypeVar("T")

NETNS_DIR = Path("/run/netns")
FILES_DIR = Path("/tmp")  # whatever TMPDIR says: the path of a unix socket may have 107 bytes only
PREFIX = "bgpdt"
SHORT_S = 30.0
CLONE_NEWNET = 0x40000000
_LIBC = ctypes.CDLL(None, use_errno=True)
_OURS = re.compile(rf"^{PREFIX}-(\d+)-")

# Read by every namespace at its start. No DAD: a v6 address is usable at once. No reverse path filter and no
# redirects: traffic to the ToRs' loopbacks is asymmetric by design. The hash policy spreads ECMP by flow.
SYSCTLS: Mapping[str, str] = {
    "net/ipv6/conf/all/disable_ipv6": "0",
    "net/ipv6/conf/default/disable_ipv6": "0",
    "net/ipv6/conf/all/accept_dad": "0",
    "net/ipv6/conf/default/accept_dad": "0",
    "net/ipv6/conf/all/accept_redirects": "0",
    "net/ipv6/conf/default/accept_redirects": "0",
    "net/ipv6/conf/default/accept_ra": "0",
    "net/ipv4/conf/all/rp_filter": "0",
    "net/ipv4/conf/default/rp_filter": "0",
    "net/ipv4/conf/all/accept_redirects": "0",
    "net/ipv4/conf/default/accept_redirects": "0",
    "net/ipv4/conf/all/send_redirects": "0",
    "net/ipv4/conf/default/send_redirects": "0",
    "net/ipv4/fib_multipath_hash_policy": "1",
}
FORWARDING: Mapping[str, str] = {"net/ipv4/ip_forward": "1", "net/ipv6/conf/all/forwarding": "1"}


def missing(*programs: str) -> str | None:
    """What this machine lacks to build a lab with these programs, in words, or None: the text of a skip."""
    if os.geteuid() != 0:
        return "not root: network namespaces need CAP_SYS_ADMIN"
    wanted = ("ip", "nsenter", "setpriv", *programs)
    lacking = [name for name in wanted if shutil.which(name) is None and not Path(name).is_file()]
    if lacking:
        return "not installed: " + ", ".join(lacking)
    probe = f"{PREFIX}-{os.getpid()}-probe"
    added = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True, check=False)
    if added.returncode != 0:
        return f"no network namespaces here: {added.stderr.strip()}"
    subprocess.run(["ip", "netns", "del", probe], capture_output=True, check=False)
    return None


class Namespace:
    """One network namespace. `lo` is up; everything else is what the lab and the test put there."""

    def __init__(self, lab: Lab, name: str) -> None:
        self.lab = lab
        self.name = name
        self.netns_name = f"{PREFIX}-{os.getpid()}-{name}"
        self.path = NETNS_DIR / self.netns_name

    def __repr__(self) -> str:
        return f"Namespace({self.netns_name})"

    def ip(self, *commands: str) -> None:
        """Run `ip` commands (without the word `ip`) in order, in one process; the first that fails raises."""
        self.call(lambda: _short(["ip", "-batch", "-"], "\n".join(commands) + "\n"))

    def sysctl(self, values: Mapping[str, str]) -> None:
        """Write kernel settings (paths below /proc/sys) of this namespace, leaving out those it lacks."""

        def write() -> None:
            for key, value in values.items():
                with contextlib.suppress(FileNotFoundError), Path("/proc/sys", key).open("r+") as file:
                    file.write(value)

        self.call(write)

    def run(
        self,
        argv: Sequence[str],
        *,
        check: bool = True,
        stdin: str | None = None,
        timeout_s: float = 30.0,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program in here to its end; see `process.run`."""
        return run(argv, netns=self.path, check=check, stdin=stdin, timeout_s=timeout_s, env=env)

    def popen(
        self,
        argv: Sequence[str],
        *,
        name: str = "",
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> Process:
        """Start a program in here that lives until it is stopped or the lab closes."""
        label = name or Path(argv[0]).name
        log_path = self.lab.directory / f"{self.name}-{label}.log"
        process = spawn(f"{self.name}/{label}", argv, log_path=log_path, netns=self.path, env=env, cwd=cwd)
        return self.lab.adopt(process)

    def add_address(self, interface: str, *addresses: str) -> None:
        """Add addresses (`10.0.0.1/24`, `fd00::1/64`), usable at once; `lo` is one like any other."""
        lines = [f"addr add {it} dev {interface}{' nodad' if ':' in it else ''}" for it in addresses]
        self.ip(*lines)

    def add_route(self, prefix: str, *, via: Sequence[str] | str = (), dev: str | None = None) -> None:
        """Install a route, replacing one for the same prefix; several `via` make an ECMP route."""
        hops = [via] if isinstance(via, str) else list(via)
        family = "-6 " if ":" in prefix or any(":" in hop for hop in hops) else ""
        if len(hops) > 1:
            target = " ".join(f"nexthop via {hop}" for hop in hops)
        else:
            target = " ".join([*(f"via {hop}" for hop in hops), *([f"dev {dev}"] if dev else [])])
        argv = ["ip", *family.split(), "route", "replace", *prefix.split(), *target.split()]
        self.call(lambda: _short(argv))

    def remove_route(self, prefix: str) -> None:
        argv = ["ip", *(["-6"] if ":" in prefix else []), "route", "del", prefix]
        self.call(lambda: _short(argv))

    def routes(self, family: int = 4) -> list[str]:
        """The kernel's main table as `ip route` prints it, one line a route."""
        return run(["ip", f"-{family}", "route", "show"], netns=self.path).stdout.splitlines()

    def link_down(self, interface: str) -> None:
        """Cut the cable here: the far end loses its carrier. Routes through it go, and its v6 addresses."""
        self.ip(f"link set {interface} down")

    def link_up(self, interface: str) -> None:
        self.ip(f"link set {interface} up")

    def socket(self, family: socket.AddressFamily, kind: socket.SocketKind, protocol: int = 0) -> socket.socket:
        """Open a socket that belongs to this namespace; the caller's own thread stays where it is.

        A socket keeps its namespace for life, so the test process can listen, dial and capture anywhere in
        the lab.
        """
        return self.call(lambda: socket.socket(family, kind, protocol))

    def call(self, function: Callable[[], T]) -> T:
        """What `function` returns, called on a thread that is in here, as are the sockets and processes it makes."""
        returned: list[T] = []
        raised: list[Exception] = []

        def enter_and_call() -> None:
            try:
                with self.path.open("rb") as netns:
                    if _LIBC.setns(netns.fileno(), CLONE_NEWNET) != 0:
                        raise OSError(ctypes.get_errno(), f"setns into {self.netns_name}")
                returned.append(function())
            except Exception as problem:  # noqa: BLE001 - raised again where it was called
                raised.append(problem)

        visitor = threading.Thread(target=enter_and_call, name=f"enter-{self.netns_name}")
        visitor.start()
        visitor.join()
        if raised:
            raise raised[0]
        return returned[0]


class Lab:
    """Everything one test made in the kernel, taken away at the end of the `with` block, whatever happened.

    `directory` holds configurations, sockets and logs, and goes too (`keep_files=True` leaves it). Closing
    twice does nothing the second time. Inside the block SIGTERM is turned into `SystemExit`, so that it
    cleans up too.
    """

    def __init__(self, *, keep_files: bool = False) -> None:
        self.keep_files = keep_files
        self.directory = Path()
        self.namespaces: dict[str, Namespace] = {}
        self._processes: list[Process] = []
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        _sweep()
        owner = f"{PREFIX}-kept" if self.keep_files else f"{PREFIX}-{os.getpid()}"
        self.directory = Path(tempfile.mkdtemp(prefix=f"{owner}-", dir=FILES_DIR))
        self.directory.chmod(0o755)
        if not self.keep_files:
            self._stack.callback(shutil.rmtree, self.directory, ignore_errors=True)
        self._stack.callback(self._remove_namespaces)
        self._stack.callback(self._end_processes)
        with contextlib.suppress(ValueError):  # signal handlers belong to the main thread only
            before = signal.signal(signal.SIGTERM, _exit_on_signal)
            self._stack.callback(signal.signal, signal.SIGTERM, before)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def namespace(self, name: str, *, forwarding: bool = False) -> Namespace:
        """Make a namespace; `forwarding` makes it a router for both families."""
        made = Namespace(self, name)
        _short(["ip", "netns", "add", made.netns_name])
        self.namespaces[name] = made
        made.sysctl({**SYSCTLS, **(FORWARDING if forwarding else {})})
        made.ip("link set lo up")
        return made

    def remove(self, namespace: Namespace) -> None:
        """Take one namespace away before the lab closes; end its processes first."""
        self.namespaces.pop(namespace.name, None)
        run(["ip", "netns", "del", namespace.netns_name], check=False)

    def link(self, left: Namespace, left_name: str, right: Namespace, right_name: str, mtu: int = 1500) -> None:
        """Lay a cable (veth) between two namespaces, both ends up."""
        if left.lab is not self or right.lab is not self:
            raise ValueError("a cable joins two namespaces of the same lab")
        ends = f"{left_name} netns {left.netns_name} mtu {mtu} type veth peer name {right_name}"
        _short(["ip", "link", "add", *ends.split(), "netns", right.netns_name, "mtu", str(mtu)])
        left.ip(f"link set {left_name} up")
        right.ip(f"link set {right_name} up")

    def bridge(self, namespace: Namespace, name: str = "br0") -> None:
        """Make a switch in `namespace`: no spanning tree, so a port forwards as soon as it is up.

        Its MAC address is its own: a bridge without one takes the lowest of its ports, and changes it under those who
        have it for a gateway when a port comes that has a lower one.
        """
        mac = ":".join(f"{byte:02x}" for byte in (2, *os.urandom(5)))
        made = f"link add {name} address {mac} type bridge stp_state 0 forward_delay 0"
        namespace.ip(made, f"link set {name} up")

    def plug(self, namespace: Namespace, interface: str, switch: Namespace, port: str, bridge: str = "br0") -> None:
        """Lay a cable from `interface` of a namespace to a port of the bridge in `switch`."""
        self.link(namespace, interface, switch, port)
        switch.ip(f"link set {port} master {bridge}")

    def adopt(self, process: Process) -> Process:
        """Remember a process so that the lab ends it when it closes."""
        self._processes.append(process)
        return process

    def _end_processes(self) -> None:
        for process in reversed(self._processes):
            with contextlib.suppress(Exception):  # the next one has to be ended whatever became of this one
                process.kill()
        self._processes.clear()

    def _remove_namespaces(self) -> None:
        for namespace in reversed(self.namespaces.values()):
            subprocess.run(["ip", "netns", "del", namespace.netns_name], capture_output=True, check=False)
        self.namespaces.clear()


def _short(argv: Sequence[str], stdin: str = "") -> None:
    """Run what ends at once, where the calling thread is: the programs that `process.run` puts around cost more."""
    done = subprocess.run(argv, input=stdin, capture_output=True, text=True, timeout=SHORT_S, check=False)
    if done.returncode:
        said = (done.stderr + done.stdout).strip()
        raise RuntimeError(f"{' '.join(argv)!r} exited with {done.returncode}: {said}")


def _exit_on_signal(number: int, frame: object) -> None:
    raise SystemExit(128 + number)


def _sweep() -> None:
    """Remove what was left by test processes that were killed: it carries a pid that no longer exists."""
    for path in [*NETNS_DIR.glob(f"{PREFIX}-*"), *FILES_DIR.glob(f"{PREFIX}-*")]:
        owner = _OURS.match(path.name)
        if owner is None or Path("/proc", owner.group(1)).exists():
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            subprocess.run(["ip", "netns", "del", path.name], capture_output=True, check=False)
