"""The demo's part about NetworkPolicy: a pod is isolated, and then opened to the health checker on one port.

This decides which policies node1 reads, who dials whom, and what must get through; `demo` decides when. On a machine
that cannot enforce policies (`bgpd doctor` says so) the node runs without, and one line says why.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from tests.fabric.demo_masq import POD, POD6, show
from tests.fabric.netns import Namespace
from tests.fabric.node import BgpdNode
from tests.fabric.process import poll
from tests.fabric.reach import ping, source_seen
from tests.fabric.screen import Screen
from tests.fabric.topology import HEALTH_CHECKER, NodePlace, TwoTorFabric
from tests.files import rewrite

PORT, OTHER_PORT = 8080, 8081
_PATIENCE_S = 15.0
_SHORT_S, _GLANCE_S = 0.2, 0.02  # an answer takes less than a millisecond here
_POD = """\
apiVersion: v1
kind: Namespace
metadata: {{name: shop}}
---
apiVersion: v1
kind: Pod
metadata: {{namespace: shop, name: web, labels: {{app: web}}}}
spec: {{nodeName: {node}, containers: [{{name: web}}]}}
status: {{podIPs: [{{ip: {ipv4}}}, {{ip: '{ipv6}'}}]}}
"""
_DENY_ALL = """\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: shop, name: deny-all}
spec: {podSelector: {}, policyTypes: [Ingress, Egress]}
"""
_CHECKS = f"""\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{namespace: shop, name: health-checks}}
spec:
  podSelector: {{matchLabels: {{app: web}}}}
  policyTypes: [Ingress]
  ingress:
  - from: [{{ipBlock: {{cidr: 11.11.248.0/21}}}}]
    ports: [{{protocol: TCP, port: {PORT}}}]
"""


class PolicyPart:
    """Made before the daemons start. `absent` says why no policy is enforced here, or is empty."""

    def __init__(self, screen: Screen, fabric: TwoTorFabric) -> None:
        self.screen, self.fabric = screen, fabric
        self.absent = ""

    def configure(self, node: BgpdNode, absent: str) -> None:
        """Turns it on in the node's bgpd.yaml. `absent`: why the kernel is not to be touched."""
        self.absent = absent
        if absent:
            return
        node.config["policy"] = {"enabled": True}
        node.write_config()
        findings = [it for it in node.ask("doctor") if it["what"].startswith("policy: ")]
        self.absent = "; ".join(it["text"] for it in findings if it["state"] == "bad")
        if self.absent:
            node.config["policy"]["enabled"] = False
            node.write_config()

    def show(self, node: BgpdNode, pod: Namespace) -> None:
        """Both families, both directions; the node reaches its pods all the while, as the kubelet has to."""
        self.screen.title("NetworkPolicy: the pod is isolated, then opened to the health checker")
        if self.absent:
            self.screen.note(f"not shown, this machine cannot do it: {self.absent}")
            return
        place, checker = self.fabric.nodes[0], self.fabric.outside
        rewrite(node.manifests / "pod.yaml", _POD.format(node=place.name, ipv4=POD, ipv6=POD6))
        self._put(node, "deny-all.yaml", _DENY_ALL)
        self._wait("the first ping without an answer", lambda: not ping(checker, POD, timeout_s=_SHORT_S))
        self._check_isolated(place, pod)
        show(self.screen, node, "policy", "explain", HEALTH_CHECKER, f"{POD}:{PORT}/TCP")
        self._put(node, "health-checks.yaml", _CHECKS)
        self._wait(
            f"the first connection to port {PORT}", lambda: _seen(checker, pod, POD, PORT, _GLANCE_S) is not None
        )
        seen = _seen(checker, pod, POD, PORT)
        text = f"the health checker dials {POD}:{PORT}: answered, and seen as {HEALTH_CHECKER}"
        self.screen.check(text, seen == HEALTH_CHECKER, f"the pod saw {seen}")
        seen = _seen(checker, pod, POD, OTHER_PORT)
        self.screen.check(f"port {OTHER_PORT} stays silent", seen is None, f"the pod saw {seen}")
        show(self.screen, node, "policy", "list")
        self._remove(node, checker)

    # --- how ----------------------------------------------------------------------------------------------

    def _check_isolated(self, place: NodePlace, pod: Namespace) -> None:
        screen, checker = self.screen, self.fabric.outside
        for address in (POD, POD6):
            silent = not ping(checker, address, timeout_s=_SHORT_S) and _seen(checker, pod, address, PORT) is None
            screen.check(f"ping and connection to {address} from outside meet silence", silent)
            reached = _seen(place.namespace, pod, address, PORT) is not None
            screen.check(f"node1 itself still reaches {address}", reached)
        out = _seen(pod, checker, HEALTH_CHECKER, PORT)
        screen.check("the pod gets nowhere either", out is None, f"the health checker saw {out}")

    def _put(self, node: BgpdNode, name: str, text: str) -> None:
        self.screen.shell(node.namespace.name, f"cat {name}", text)
        rewrite(node.manifests / name, text)
        self._put_at = time.monotonic()

    def _wait(self, what: str, probe: Callable[[], bool]) -> None:
        """`probe` is asked until it says yes; shown is when the one began that did: silence takes time to notice."""
        asked_at = 0.0

        def noted() -> bool:
            nonlocal asked_at
            asked_at = time.monotonic()
            return probe()

        poll(noted, _PATIENCE_S, lambda: f"never came: {what}", every_s=0.001)
        took_ms = 1000 * (asked_at - self._put_at)
        self.screen.table([("0.0 ms", "the manifest is renamed into place"), (f"{took_ms:.1f} ms", what)])

    def _remove(self, node: BgpdNode, checker: Namespace) -> None:
        for name in ("deny-all.yaml", "health-checks.yaml"):
            (node.manifests / name).unlink()
        text = f"without policies ping {POD} is answered again"
        poll(lambda: ping(checker, POD, timeout_s=_SHORT_S), _PATIENCE_S, lambda: text)
        self.screen.check(text, ping(checker, POD))


def _seen(
    client: Namespace, server: Namespace, address: str, port: int, timeout_s: float = _SHORT_S
) -> str | None:
    return source_seen(client, server, address, port=port, timeout_s=timeout_s)
