"""A node of the fabric that serves virtual servers: pods with nginx on a bridge and on a veth, a client behind ToRs.

This decides addresses, what the pods answer and how the manifests are written: the ConfigMap is that of the article.
It does not decide what becomes of them.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from typing import Any

import yaml

from tests.fabric.netns import Namespace
from tests.fabric.node import BgpdNode, two_tor_bgp
from tests.fabric.process import Process, poll
from tests.fabric.topology import TwoTorFabric
from tests.files import rewrite

VIP = {4: "11.16.22.80", 6: "fd00:11:16:22::80"}
CLIENT = {4: "11.11.250.12", 6: "fd00:11:11:250::12"}
GET = "GET /health.html HTTP/1.1\r\nHost:11.11.250.12\r\n\r\n"
HEAD = "HEAD / HTTP/1.1\r\n\r\n"
WRONG = "/nothing-here"

_NGINX = """
daemon off; worker_processes 1; pid {directory}/nginx.pid; error_log stderr;
events {{ worker_connections 256; }}
http {{
  access_log off;
  server {{
    listen 80; listen [::]:80;
    location = /health.html {{ default_type text/plain; root {directory}/www; }}
    location = /who {{ default_type text/plain; return 200 "{name} $remote_addr"; }}
    location / {{ default_type text/plain; return 200 "welcome"; }}
  }}
}}
"""


class Pod:
    """nginx in a pod. Healthy means that /health.html says that the server is ok."""

    def __init__(self, namespace: Namespace, name: str, addresses: dict[int, str]) -> None:
        self.namespace, self.name, self.addresses = namespace, name, addresses
        self.directory = namespace.lab.directory / f"nginx-{name}"
        (self.directory / "www").mkdir(parents=True)
        for each in (namespace.lab.directory, self.directory, self.directory / "www"):
            each.chmod(0o755)  # nginx's worker is nobody
        self.process: Process | None = None
        (self.directory / "nginx.conf").write_text(_NGINX.format(directory=self.directory, name=name))
        self.health("server is ok")
        self.start()

    def health(self, text: str) -> None:
        (self.directory / "www" / "health.html").write_text(text)

    def start(self) -> None:
        argv = ["nginx", "-c", str(self.directory / "nginx.conf"), "-p", str(self.directory), "-e", "stderr"]
        self.process = self.namespace.popen(argv, name="nginx")

    def stop(self) -> None:
        assert self.process is not None
        self.process.stop()


class Echo:
    """A pod's UDP server on port 80: it answers with the pod's name."""

    def __init__(self, pod: Pod) -> None:
        self._name, self._socket = pod.name.encode(), pod.namespace.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind((pod.addresses[4], 80))
        self._socket.settimeout(0.05)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Nobody listens from now on."""
        self._closing.set()
        self._thread.join()
        self._socket.close()

    def _serve(self) -> None:
        while not self._closing.is_set():
            with contextlib.suppress(OSError):
                _, client = self._socket.recvfrom(100)
                self._socket.sendto(self._name, client)


def echoed(opened: socket.socket) -> str:
    """Who answers a datagram; nobody: an empty text."""
    try:
        opened.send(b"ping")
        return opened.recv(100).decode()
    except OSError:
        return ""


class VirtualServerSite:
    """`pods` a and b are on a bridge, c on a veth of its own; all on the first node. Nothing is announced yet."""

    def __init__(self, fabric: TwoTorFabric, **settings: Any) -> None:
        self.fabric, self.place = fabric, fabric.nodes[0]
        bgp = two_tor_bgp(fabric)
        bgp["advertisements"].append({"advertisementType": "VirtualServer"})
        bgp["export"]["allow"] += ["11.16.22.0/24", "fd00:11:16:22::/64"]
        settings = {"enabled": True, **settings}
        self.node = BgpdNode.at(self.place, bgp, *self.place.pod_cidrs, virtualServers=settings)
        self.pods = {name: self._pod(name, last) for name, last in (("a", 10), ("b", 11), ("c", 200))}
        for version, address in VIP.items():
            hops = ["11.8.37.252", "11.8.37.253"] if version == 4 else ["fd00:11:8:37::252", "fd00:11:8:37::253"]
            fabric.fabric.add_route(f"{address}/{32 if version == 4 else 128}", via=hops)

    def start(self) -> VirtualServerSite:
        self.node.start()
        return self

    def _pod(self, name: str, last: int) -> Pod:
        namespace = self.fabric.lab.namespace(f"pod-{name}")
        four, six = f"188.188.0.{last}", f"fd00:188:188:0:{last // 100}::{last}"
        on_node, port = self.place.namespace, f"v{name}"
        if name == "c":
            self.fabric.lab.link(namespace, "eth0", on_node, port)
            namespace.add_address("eth0", f"{four}/32", f"{six}/128")
            on_node.add_address(port, "169.254.1.1/32", "fe80::1/64")
            on_node.add_route(f"{four}/32", dev=port)
            on_node.add_route(f"{six}/128", dev=port)
            namespace.add_route("169.254.1.1/32", dev="eth0")
            namespace.add_route("default", via="169.254.1.1", dev="eth0")
            namespace.add_route("default", via="fe80::1", dev="eth0")
        else:
            if name == "a":
                self.fabric.lab.bridge(on_node, "cni0")
                on_node.add_address("cni0", "188.188.0.1/25", "fd00:188:188:0::1/80")
            self.fabric.lab.plug(namespace, "eth0", on_node, port, "cni0")
            namespace.add_address("eth0", f"{four}/25", f"{six}/80")
            namespace.add_route("default", via="188.188.0.1")
            namespace.add_route("default", via="fd00:188:188:0::1")
        return Pod(namespace, name, {4: four, 6: six})

    # --- manifests --------------------------------------------------------------------------------------------

    def serve(
        self, name: str = "nginx-vs-http", version: int = 4, *, send: str = GET, recv: str = "server is ok",
        interval: int = 1, timeout: int = 3, balance: str = "round-robin", created: str = "", **monitor: Any,
    ) -> None:  # fmt: skip
        """The article's ConfigMap, with another address for IPv6 and a monitor that is quick."""
        health = {"interval": interval, "protocol": "http", "send": send, "recv": recv, "timeout": timeout, **monitor}
        document = {
            "virtualServer": {
                "backend": {"servicePort": 80, "serviceName": "nginx-http", "healthMonitors": [health]},
                "frontend": {
                    "virtualAddress": {"port": 80, "bindAddr": VIP[version]},
                    "partition": "Cilium",
                    "balance": balance,
                    "mode": "udp" if monitor.get("protocol") == "udp" else "http",
                },
            }
        }
        self.config_map(name, json.dumps(document), created)

    def config_map(self, name: str, document: str, created: str = "") -> None:
        metadata = {"name": name, "namespace": "default", "labels": {"f5type": "virtual-server"}}
        self.write(
            f"cm-{name}",
            {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": metadata | ({"creationTimestamp": created} if created else {}),
                "data": {"schema": "f5schemadb://bigip-virtual-server_v0.1.7.json", "data": document},
            },
        )

    def endpoints(self, *names: str) -> None:
        """The Service and its slices, with these pods and one of another node."""
        ports = [{"name": name, "protocol": name, "port": 80} for name in ("TCP", "UDP")]
        spec = {"clusterIPs": ["10.96.0.80"], "ports": ports}
        metadata = {"name": "nginx-http", "namespace": "default"}
        self.write("service", {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec})
        for version, kind, far in ((4, "IPv4", "188.188.1.10"), (6, "IPv6", "fd00:188:188:1::10")):
            here = [(self.pods[name].addresses[version], self.place.name) for name in names]
            slice_ = {
                "apiVersion": "discovery.k8s.io/v1",
                "kind": "EndpointSlice",
                "metadata": {
                    "name": f"nginx-http-{version}",
                    "namespace": "default",
                    "labels": {"kubernetes.io/service-name": "nginx-http"},
                },
                "addressType": kind,
                "ports": ports,
                "endpoints": [
                    {"addresses": [address], "nodeName": node, "conditions": {"ready": True}}
                    for address, node in (*here, (far, "elsewhere"))
                ],
            }
            self.write(f"slice-{version}", slice_)

    def write(self, name: str, *values: dict[str, Any]) -> None:
        """A manifest of this name, with these objects."""
        rewrite(self.node.manifests / f"{name}.yaml", yaml.safe_dump_all(values))

    # --- seen from outside ------------------------------------------------------------------------------------

    def ask(
        self, version: int = 4, client: Namespace | None = None, port: int = 80, source: str = ""
    ) -> tuple[str, str]:
        """Which pod answers at the address, and what it takes the client's address to be."""
        with self.connection(version, client, port, source) as opened:
            opened.sendall(b"GET /who HTTP/1.0\r\n\r\n")
            answer = b"".join(iter(lambda: opened.recv(4096), b""))
        name, _, source = answer.rpartition(b"\r\n\r\n")[2].decode().partition(" ")
        return name, source

    @contextlib.contextmanager
    def connection(
        self, version: int = 4, client: Namespace | None = None, port: int = 80, source: str = ""
    ) -> Iterator[socket.socket]:
        """Of the client outside unless another is given; `source` is one of its addresses."""
        family = socket.AF_INET if version == 4 else socket.AF_INET6
        with (client or self.fabric.outside).socket(family, socket.SOCK_STREAM) as opened:
            opened.settimeout(3.0)
            if source:
                opened.bind((source, 0))
            opened.connect((VIP[version], port))
            yield opened

    def answering(self, count: int, version: int = 4) -> list[str]:
        return sorted(self.ask(version)[0] for _ in range(count))

    def wait_answering(self, *names: str, version: int = 4) -> None:
        """Until just these pods get connections."""

        def probe() -> bool:
            try:
                return set(self.answering(2 * len(names), version)) == set(names)
            except OSError:
                return False

        poll(probe, 20, self.told)

    def wait_announced(self, version: int = 4) -> None:
        for tor in self.fabric.tors:
            tor.speaker.wait_route(self.route(version))

    def wait_withdrawn(self, version: int = 4) -> None:
        for tor in self.fabric.tors:
            tor.speaker.wait_no_route(self.route(version))

    @staticmethod
    def route(version: int = 4) -> str:
        return f"{VIP[version]}/{32 if version == 4 else 128}"

    def told(self) -> str:
        listed = self.node.bgpd("virtualservers", "list", check=False)
        table = self.place.namespace.run(["nft", "list", "table", "inet", "bgpd-virtual-servers"], check=False).stdout
        return listed + self.node.bgpd("status", check=False) + table

    def servers(self) -> dict[str, dict[str, Any]]:
        return {each["name"].partition("/")[2]: each for each in self.node.ask("virtualservers", "list")}
