"""Two nodes of one wire whose pods come on ipvlans, by the runtime's chain with our plugin in it.

The chain is that of cilium-chaining's own manual for ipvlan, with host-local in the place of Spiderpool's IPAM, and
Debian's `tuning` in that of its coordinator. What the daemon does about pods and policy runs in the test's process,
in the node's namespace: to start another Python takes a minute where the kernel is emulated.

    pods === eth0 of worker1 --- switch --- eth0 of worker2 === pods
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import shutil
import threading
import warnings
from collections.abc import Coroutine, Iterator, Mapping
from concurrent.futures import Future
from ipaddress import ip_address
from pathlib import Path
from typing import Any, TypeVar

from bgpd.cni.chaining import Chaining
from bgpd.config.load import Loaded, load
from bgpd.model.attachment import OWN_FILE
from bgpd.model.endpoint import Endpoints
from bgpd.model.labels import Selector
from bgpd.model.node import Node
from bgpd.model.pod import Namespace as PodNamespace
from bgpd.model.pod import Pod
from bgpd.model.policy import NetworkPolicy
from bgpd.policy.policing import Policing
from bgpd.policy.view import Objects
from bgpd.runtime.store import Store
from tests.contract.cni_runtime import DEBIAN, Runtime
from tests.fabric.netns import Lab, Namespace
from tests.fabric.process import poll
from tests.fabric.reach import ping, source_seen
from tests.unit.config_values import SMALLEST

T = TypeVar("T")
MODE = "terway-chainer"
SOON_S = 120.0  # in a virtual machine, beside others
SILENCE_S = 0.6
NODES = {"worker1": 200, "worker2": 210}  # the first addresses of their pods
POD_NETWORKS = {
    "worker1": ("10.6.185.200/29", "fd06::185:200/125"),
    "worker2": ("10.6.185.208/29", "fd06::185:210/125"),
}
"""Where the first of a node's pods are: in mode L3 nobody answers ARP for them, so others route them to the node."""
PODS = {"test-1": "worker1", "test-2": "worker1", "test-3": "worker2"}
ROUTED = ("10.7.0.0/24", "fd07::/112")  # of a network by veths, on the first node
DENY_ALL = {"shop/deny-all": NetworkPolicy("shop", "deny-all", "", Selector(), (), ())}


def addresses(name: str) -> tuple[str, str]:
    """What host-local gives, in the order of attaching."""
    node = PODS[name]
    at = NODES[node] + [each for each, where in PODS.items() if where == node].index(name)
    return f"10.6.185.{at}", f"fd06::185:{at}"


class Worker:
    """A node: what it is told, and what it does about it while `running`."""

    def __init__(self, host: Namespace, bpffs: Path, directory: Path, mode: str) -> None:
        self.host, self.name, self.directory, self.mode = host, host.name, directory, mode
        self.pins = bpffs / host.name
        self.policies: Store[Mapping[str, NetworkPolicy]] = _told({})
        self._forget()

    def configured(self, **policy: object) -> Loaded:
        places = {name: self.directory / name for name in ("run", "state", "cniConf", "cniBin", "cniCache")}
        for place in places.values():
            place.mkdir(parents=True, exist_ok=True)
        (places["cniConf"] / "10-ipvlan.conflist").write_text(json.dumps(self._chain()))
        values = {
            **SMALLEST,
            "paths": {"bpf": str(self.pins), **{name: str(place) for name, place in places.items()}},
            "policy": {"enabled": True, **policy},
            "cni": {"chainingMode": MODE, "deadlineSeconds": 100},
        }
        file = self.directory / "bgpd.yaml"
        file.write_text(json.dumps(values))
        return load(file)

    def _chain(self) -> dict[str, Any]:
        """As an operator gives it."""
        first = NODES[self.name]
        ranges = [
            [{"subnet": "10.6.0.0/16", "rangeStart": f"10.6.185.{first}", "rangeEnd": f"10.6.185.{first + 8}"}],
            [{"subnet": "fd06::/64", "rangeStart": f"fd06::185:{first}", "rangeEnd": f"fd06::185:{first + 8}"}],
        ]
        ipam = {"type": "host-local", "ranges": ranges, "dataDir": str(self.directory / "ipam")}
        main = {"type": "ipvlan", "mode": self.mode, "master": "eth0", "ipam": ipam}
        behind = {"type": "tuning", "sysctl": {"net.ipv4.tcp_keepalive_time": "500"}}
        return {"cniVersion": "0.4.0", "name": MODE, "plugins": [main, behind]}

    @contextlib.contextmanager
    def running(self, **policy: object) -> Iterator[Worker]:
        """One daemon. What it had open is gone when it ends, but for what is pinned."""
        ready: Future[asyncio.AbstractEventLoop] = Future()
        ended = threading.Thread(target=lambda: self.host.call(lambda: asyncio.run(self._run(policy, ready))))
        ended.start()
        self.loop = ready.result()
        try:
            yield self
        finally:
            self.loop.call_soon_threadsafe(self._stop.set)
            ended.join()
            del self.policing, self.chaining
            self._forget()
            with warnings.catch_warnings():  # a process closes what owns the tables by ending
                warnings.simplefilter("ignore", ResourceWarning)
                gc.collect()

    def _forget(self) -> None:
        """Stores know who listens to them: those of another daemon are others."""
        self.endpoints: Store[Endpoints] = Store({})
        self.policies = _told(self.policies.newest.value)

    async def _run(self, policy: dict[str, object], ready: Future[asyncio.AbstractEventLoop]) -> None:
        config: Store[Loaded] = Store(self.configured(**policy))
        config.publish(config.newest.value)
        pods = {f"shop/{name}": Pod("shop", name, node=node, ips=_ips(name)) for name, node in PODS.items()}
        nodes: Store[Mapping[str, Node]] = _told({name: Node(name) for name in NODES})
        objects = Objects(nodes, _told(pods), _told({"shop": PodNamespace("shop")}), self.policies)
        self.policing = Policing(self.name, config, objects, self.endpoints, lambda done: None)
        self.chaining = Chaining(
            config.newest.value.config,
            Store({}),
            self.endpoints,
            self.policing.enforced,
            self.policing.unready,
            lambda done: None,
        )
        self._stop = asyncio.Event()
        tasks = [asyncio.create_task(each.run()) for each in (self.policing, self.chaining)]
        ready.set_result(asyncio.get_running_loop())
        await self._stop.wait()
        for task in tasks:
            task.cancel()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(each, asyncio.CancelledError) for each in found), found

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        """What it returns, in the daemon's loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(SOON_S)

    def apply(self, policies: Mapping[str, NetworkPolicy]) -> None:
        """Returns when they are in force."""

        async def told() -> None:
            self.policies.publish(policies)
            assert await self.policing.maps.wait_until(self.policing.maps.kick(), SOON_S), self.problems()

        self.do(told())

    def problems(self) -> list[str]:
        return [*self.policing.problems(), *self.chaining.problems()]

    def runtime(self) -> Runtime:
        """With the chain that the daemon has written."""
        file = self.directory / "cniConf" / OWN_FILE
        poll(file.exists, SOON_S, lambda: "\n".join([self.chaining.attacher.status(), *self.problems()]))
        return self._runtime(json.loads(file.read_text()))

    def by_name(self, network: str) -> Runtime:
        """The same chain under another name, as an operator may mistake it."""
        return self._runtime({**self.runtime().conflist, "name": network})

    def by_veth(self) -> Runtime:
        """Another network of the node, whose pods are routed by it."""
        ours = {**self.runtime().conflist["plugins"][-1], "chaining-mode": "generic-veth"}
        ranges = [[{"subnet": prefix}] for prefix in ROUTED]
        ipam = {"type": "host-local", "ranges": ranges, "dataDir": str(self.directory / "routed")}
        main = {"type": "ptp", "ipam": {**ipam, "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]}}
        return self._runtime({"cniVersion": "0.4.0", "name": "routed", "plugins": [main, ours]})

    def _runtime(self, chain: dict[str, Any]) -> Runtime:
        return Runtime(chain, self.host.path, (self.directory / "cniBin", DEBIAN))


class Site:
    """Both nodes, and the pods' namespaces. `mode`: the ipvlans', as their plugin takes it."""

    def __init__(self, lab: Lab, bpffs: Path, mode: str = "l2") -> None:
        switch = lab.namespace("switch")
        lab.bridge(switch)
        self.pods = {name: lab.namespace(name) for name in PODS}
        self.workers = []
        for index, name in enumerate(NODES, 1):
            host = lab.namespace(name, forwarding=True)
            lab.plug(host, "eth0", switch, f"port{index}")
            host.add_address("eth0", f"10.6.0.{index}/16", f"fd06::{index}/64")
            self.workers.append(Worker(host, bpffs, lab.directory / name, mode))
        for worker, other, via in zip(self.workers, reversed(self.workers), (2, 1), strict=True):
            for prefix, gateway in zip(POD_NETWORKS[other.name], (f"10.6.0.{via}", f"fd06::{via}"), strict=True):
                if mode != "l2":
                    worker.host.add_route(prefix, via=gateway)

    def attach(self) -> dict[str, Runtime]:
        runtimes = {worker.name: worker.runtime() for worker in self.workers}
        for name, node in PODS.items():
            runtimes[node].add(name, self.pods[name].path, name)
        return runtimes

    def reached(self) -> set[tuple[str, str, str]]:
        """Client, server and how, of what is answered in either family."""
        pairs = [(client, server) for client in PODS for server in PODS if client != server]
        return {(client, server, way) for client, server in pairs for way in self._ways(self.pods[client], server)}

    def _ways(self, client: Namespace, server: str) -> Iterator[str]:
        for address in addresses(server):
            if ping(client, address, timeout_s=SILENCE_S):
                yield f"ping {address}"
            if source_seen(client, self.pods[server], address, timeout_s=SILENCE_S):
                yield f"tcp {address}"


EVERYTHING = {
    (client, server, f"{how} {address}")
    for client in PODS
    for server in PODS
    if client != server
    for how in ("ping", "tcp")
    for address in addresses(server)
}


def lacking_plugins() -> str:
    needed = ("ipvlan", "ptp", "host-local", "tuning")
    missing = [name for name in needed if shutil.which(name, path=str(DEBIAN)) is None]
    return f"not installed: {', '.join(missing)}" if missing else ""


def _ips(name: str) -> tuple[Any, ...]:
    return tuple(map(ip_address, addresses(name)))


def _told(value: T) -> Store[T]:
    store = Store(value)
    store.publish(value)
    return store
