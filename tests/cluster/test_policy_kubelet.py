"""NetworkPolicy on pods of two real kubelets behind flannel, chained by the conflist of a ConfigMap.

Two published set-ups, as they were written. From one Flannel in host-gw mode, the ConfigMap `cni-configuration` and
the policies `l3-test` and `l4-test`, written there as CiliumNetworkPolicies and here as NetworkPolicies of the same
names, labels and ports; from the other the policy `deny-all`. Three things are as they have to be here, not as they
were there: the plugin's type is ours, images are ours, and pods are made from the template by the test, because no
controller runs. The daemon comes with the rights of config/rbac.yaml.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import pytest
import yaml

from bgpd.cni.protocol import PLUGIN_TYPE
from bgpd.model.attachment import OWN_FILE
from tests.fabric.netns import missing
from tests.fabric.node import BgpdNode
from tests.fabric.process import poll
from tests.fabric.topology import HEALTH_CHECKER, POD_SUPERNETS, NodePlace

from . import conflist
from .apply import apply, collection_of
from .flanneld import MODES, Flannel
from .images import IMAGE
from .kubelet import CHAIN, CNI_BIN, CNI_CONF, PROGRAMS, KubeletNode, addresses, is_ready, running_kubelet
from .machine import lacking
from .node import Cluster, bgpd_node
from .pods import PLUGINS, host_local
from .rest import JsonObject

SETTLED_S: Final = 20.0
WAYS: Final = {"ping": ("ping", 0), "80": ("tcp", 80), "8080": ("tcp", 8080)}
FLANNEL_CHAIN: Final = """\
{
  "name": "cbr0",
  "cniVersion": "0.3.1",
  "plugins": [
    {
      "type": "flannel",
      "delegate": {
        "hairpinMode": true,
        "isDefaultGateway": true
      }
    },
    {
      "type": "portmap",
      "capabilities": {
        "portMappings": true
      }
    }
  ]
}
"""
AS_PUBLISHED: Final = """\
apiVersion: v1
kind: ConfigMap
metadata:
  name: cni-configuration
  namespace: kube-system
data:
  cni-config: |-
    {
      "name": "generic-veth",
      "cniVersion": "0.3.1",
      "plugins": [
        {
          "type": "flannel",
          "delegate": {
            "hairpinMode": true,
            "isDefaultGateway": true
          }
        },
        {
          "type": "cilium-cni"
        }
      ]
    }
"""
CONFIG: Final = yaml.safe_load(AS_PUBLISHED)["data"]["cni-config"].replace("cilium-cni", PLUGIN_TYPE)
TEST: Final = """\
apiVersion: apps/v1
kind: DaemonSet
metadata:
  labels:
    app: test
  name: test
  namespace: default
spec:
  selector:
    matchLabels:
      app: test
  template:
    metadata:
      labels:
        app: test
      annotations:
        v1.multus-cni.io/default-network: kube-system/ipvlan-ens192
    spec:
      containers:
      - image: docker.io/centos/tools
        imagePullPolicy: IfNotPresent
        name: test
        ports:
        - name: http
          containerPort: 80
          protocol: TCP
"""
NM: Final = """\
apiVersion: apps/v1
kind: DaemonSet
metadata:
  namespace: kube-system
  name: nm
spec:
  selector:
    matchLabels:
      app: test
  template:
    metadata:
      labels:
        app: test
    spec:
      containers:
        - name: test
          image: runzhliu/network-multitool:latest
          command: ["/bin/bash", "-c", "nginx && sleep inf"]
          securityContext:
            privileged: true
"""
STRANGER: Final = NM.replace("app: test", "app: stranger").replace("name: nm", "name: stranger")
DENY_ALL: Final = """\
kind: NetworkPolicy
apiVersion: networking.k8s.io/v1
metadata:
  name: deny-all
spec:
  podSelector:
    matchLabels:
      app: test
  policyTypes:
  - Egress
  - Ingress
"""
# Applied with `kubectl -n kube-system`, where the pods are and the log of that day has the policies.
L3_TEST: Final = """\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: l3-test
  namespace: kube-system
spec:
  podSelector:
    matchLabels:
      app: test
  ingress:
    - from:
        - podSelector:
            matchLabels:
              app: test
"""
L4_TEST: Final = """\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: l4-test
  namespace: kube-system
spec:
  podSelector:
    matchLabels:
      app: test
  ingress:
  - from:
    - podSelector:
        matchLabels:
          app: test
    ports:
    - port: 80
      protocol: TCP
"""
# flannel's CNI plugin hands what it makes of flannel's environment to the bridge plugin, and so does this.
FLANNEL_PLUGIN: Final = """\
#!{python} -IS
import json, os, subprocess, sys
network = json.load(sys.stdin)
kept = {{key: network[key] for key in ("name", "cniVersion", "prevResult") if key in network}}
asked = json.dumps({{**{made!r}, **network.get("delegate", {{}}), **kept}})
sys.exit(subprocess.run([{bridge!r}], input=asked, text=True).returncode)
"""


@dataclass(frozen=True, slots=True)
class Site:
    """`pods` are where which pod runs, by `namespace/name`; those of one DaemonSet end in the number of the node."""

    cluster: Cluster
    nodes: list[KubeletNode]
    daemons: list[BgpdNode]
    pods: Mapping[str, JsonObject]

    def addresses(self, name: str) -> dict[int, str]:
        return addresses(self.pods[name])

    def table(self, pairs: Iterable[tuple[str, str]]) -> dict[tuple[str, str], str]:
        """What each client gets from each server, in both families: of `WAYS`, with a star where only in one."""
        with ThreadPoolExecutor(max_workers=64) as pool:  # what is denied only waits
            asked = {
                (pair, name): [
                    pool.submit(self.nodes[int(pair[0][-1])].asks, pair[0], protocol, address, port)
                    for address in self.addresses(pair[1]).values()
                ]
                for pair in pairs
                for name, (protocol, port) in WAYS.items()
            }
        found: dict[tuple[str, str], list[str]] = {}
        for (pair, name), answers in asked.items():
            passing = [each.result() for each in answers]
            found.setdefault(pair, []).extend([name if all(passing) else f"{name}*"] if any(passing) else [])
        return {pair: " ".join(each) for pair, each in found.items()}

    def settles(self, wanted: Mapping[tuple[str, str], str]) -> None:
        """Both daemons get there."""
        poll(lambda: self.table(wanted) == wanted, SETTLED_S, lambda: f"{self.table(wanted)}, not {wanted}")


def install_flannel(node: KubeletNode, flannel: Flannel) -> None:
    """Its plugin and its chain, in the place of the node's own."""
    flannel.start()
    leases = Path("/var/lib/cni/networks")
    routes = [{"dst": each} for each in POD_SUPERNETS]  # the default route is what isDefaultGateway is for
    made = {**flannel.plugin(leases), "ipam": {**host_local(node.place, leases), "routes": routes}}
    plugin = node.machine.root / CNI_BIN.relative_to("/") / "flannel"
    text = FLANNEL_PLUGIN.format(python=sys.executable, made=made, bridge=str(PLUGINS / "bridge"))
    plugin.write_text(text)
    plugin.chmod(0o755)
    node.write_chain(json.loads(FLANNEL_CHAIN), "10-flannel.conflist")
    node.remove_chain(CHAIN)


@contextlib.contextmanager
def daemon_on(node: KubeletNode) -> Iterator[BgpdNode]:
    """With the paths that it has on a node, so that the published chain reaches it. Started."""
    with bgpd_node(node.cluster, node.place, policy={"enabled": True}) as made:
        run = made.directory / "run"
        run.symlink_to(node.machine.root / "run/bgpd")
        made.config["paths"] = {"bpf": "/sys/fs/bpf/bgpd"}
        made.config["cni"] = {"chainingMode": "generic-veth", "configMap": f"kube-system/{conflist.CONFIG_MAP}"}
        made.write_config()
        made.start_daemon()
        yield made


def own_chain(node: KubeletNode) -> str:
    """What the container runtime reads; empty: there is none of ours."""
    file = node.machine.root / CNI_CONF.relative_to("/") / OWN_FILE
    return file.read_text() if file.exists() else ""


def of_template(manifest: str, number: int, place: NodePlace) -> JsonObject:
    """The pod of a DaemonSet on this node, as its controller makes it, with an image that is there."""
    made = yaml.safe_load(manifest)
    template, metadata = made["spec"]["template"], made["metadata"]
    (container,) = template["spec"]["containers"]
    ours = {"image": IMAGE, "imagePullPolicy": "Never", "args": ["80/tcp", "8080/tcp"]}
    container = {key: value for key, value in container.items() if key != "command"} | ours
    spec = {"nodeName": place.name, "automountServiceAccountToken": False, "dnsPolicy": "Default"}
    name = f"{metadata['name']}-{number}"
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {**template["metadata"], "name": name, "namespace": metadata["namespace"]},
        "spec": {**template["spec"], **spec, "containers": [container], "terminationGracePeriodSeconds": 1},
    }


def run_pods(cluster: Cluster, nodes: list[KubeletNode]) -> dict[str, JsonObject]:
    """Of both DaemonSets, and a stranger in the namespace of the second."""
    made = {}
    for manifest, where in ((TEST, nodes), (NM, nodes), (STRANGER, nodes[:1])):
        for number, node in enumerate(where):
            each = of_template(manifest, number, node.place)
            apply(cluster.control_plane.admin, each)
            made[f"{each['metadata']['namespace']}/{each['metadata']['name']}"] = node
    return {name: node.wait_pod(name, has_all, SETTLED_S) for name, node in made.items()}


def has_all(found: JsonObject) -> bool:
    return is_ready(found) and len(addresses(found)) == 2


@pytest.fixture(scope="module")
def site(cluster: Cluster, control_plane_binaries: Path) -> Iterator[Site]:
    reason = missing(*PROGRAMS) or lacking()
    if reason is not None:
        pytest.skip(reason)
    apply(cluster.control_plane.admin, yaml.safe_load(AS_PUBLISHED))
    with contextlib.ExitStack() as stack:
        nodes = [
            stack.enter_context(running_kubelet(cluster, place, control_plane_binaries))
            for place in cluster.fabric.nodes[:2]
        ]
        for place, node in zip(cluster.fabric.nodes, nodes, strict=False):
            install_flannel(node, Flannel(cluster, place, control_plane_binaries, MODES[0]))
        daemons = [stack.enter_context(daemon_on(node)) for node in nodes]
        # as it was published it is refused: nobody's plugin but ours puts policy into the kernel here
        told = daemons[0].wait_problem("cni: ConfigMap kube-system/cni-configuration")
        assert f'add {{"type": "{PLUGIN_TYPE}"}} as the last, in the place of cilium-cni' in told
        assert own_chain(nodes[0]) == ""
        conflist.write_config_map(cluster, CONFIG)
        for node in nodes:
            poll(lambda node=node: own_chain(node) == CONFIG, SETTLED_S, lambda: daemons[0].bgpd("status"))  # type: ignore[misc]
        yield Site(cluster, nodes, daemons, run_pods(cluster, nodes))


ALL: Final = " ".join(WAYS)
NM_0, NM_1, TEST_0, TEST_1 = "kube-system/nm-0", "kube-system/nm-1", "default/test-0", "default/test-1"
OTHER: Final = "kube-system/stranger-0"


@contextlib.contextmanager
def applied(site: Site, *manifests: str) -> Iterator[None]:
    """As `kubectl apply` and `kubectl delete` do it."""
    admin = site.cluster.control_plane.admin
    made = [yaml.safe_load(each) for each in manifests]
    for each in made:
        apply(admin, each)
    try:
        yield
    finally:
        for each in made:
            admin.delete(f"{collection_of(admin, each)}/{each['metadata']['name']}")


# --- the policies ---------------------------------------------------------------------------------------------------


def test_deny_all(site: Site) -> None:
    """Pods of the DaemonSet ping each other and the outside; with `deny-all` nothing; and again without it."""
    pairs = dict.fromkeys([(TEST_0, TEST_1), (TEST_1, TEST_0)], ALL)
    site.settles(pairs)
    assert site.nodes[0].asks(TEST_0, "ping", HEALTH_CHECKER)
    with applied(site, DENY_ALL):
        # it is not for pods of another namespace, whatever their labels are
        site.settles(dict.fromkeys(pairs, "") | {(NM_0, NM_1): ALL, (NM_0, TEST_1): "", (TEST_0, NM_1): ""})
        assert not site.nodes[0].asks(TEST_0, "ping", HEALTH_CHECKER)
    site.settles(pairs)
    assert site.nodes[0].asks(TEST_0, "ping", HEALTH_CHECKER)


def test_l3_test(site: Site) -> None:
    """Pods of the label reach each other by everything, from node to node; nobody else reaches them."""
    with applied(site, L3_TEST):
        site.settles(
            {
                (NM_0, NM_1): ALL,
                (NM_1, NM_0): ALL,
                (OTHER, NM_0): "",
                (OTHER, NM_1): "",
                (TEST_1, NM_0): "",  # a peer without a namespaceSelector is of the policy's own namespace
                (NM_0, OTHER): ALL,
                (NM_1, TEST_0): ALL,
            }
        )


def test_l4_test(site: Site) -> None:
    """The same by port 80 only."""
    with applied(site, L4_TEST):
        site.settles({(NM_0, NM_1): "80", (NM_1, NM_0): "80", (OTHER, NM_1): "", (NM_0, OTHER): ALL})


def test_l3_test_and_l4_test(site: Site) -> None:
    """Applied together, as they were published, the first allows what the second does not: policies add up."""
    with applied(site, L3_TEST, L4_TEST):
        site.settles({(NM_0, NM_1): ALL, (NM_1, NM_0): ALL, (OTHER, NM_0): "", (OTHER, NM_1): ""})


# --- the chain ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def changing(site: Site) -> Iterator[None]:
    """The ConfigMap is as it was afterwards, and counts, and there is no problem with it."""
    try:
        yield
    finally:
        conflist.write_config_map(site.cluster, CONFIG)
        for daemon, node in zip(site.daemons, site.nodes, strict=True):
            daemon.wait_status("the conflist is at fault", lambda it: not about_chain(it))
            poll(partial(has_chain, node, CONFIG), SETTLED_S, lambda: "not as it was")


def has_chain(node: KubeletNode, text: str) -> bool:
    return own_chain(node) == text


def about_chain(status: JsonObject) -> list[str]:
    """The problems with it, and with where it is read."""
    return [each for each in status["problems"] if each.startswith("cni: ") or conflist.CONFIG_MAP in each]


def test_pods_are_attached_by_the_chain_of_the_config_map(site: Site) -> None:
    """To the letter, on every node, and all pods came through it."""
    for number, node in enumerate(site.nodes):
        assert own_chain(node) == CONFIG
        rows = {row["pod"]: row for row in site.daemons[number].ask("endpoints")}
        here = {name for name in site.pods if name.endswith(str(number))}
        assert {rows[name]["state"] for name in here} == {"enforced"}
        assert {rows[name]["attachment"].partition(",")[0] for name in here} == {"generic-veth"}


def test_a_chain_that_is_edited_is_written_again(site: Site) -> None:
    """And pods that come are attached by it."""
    node = site.nodes[0]
    edited = CONFIG.replace('"cniVersion": "0.3.1"', '"cniVersion": "0.4.0"')
    with changing(site):
        conflist.write_config_map(site.cluster, edited)
        poll(partial(has_chain, node, edited), SETTLED_S, lambda: own_chain(node))
        node.run("edited")
        node.wait_running("edited")
        node.delete("edited")


BROKEN: Final = {
    CONFIG[:-1]: "it is no JSON: ",
    CONFIG.replace(PLUGIN_TYPE, "portmap"): f"no plugin has the type {PLUGIN_TYPE}",
    CONFIG.replace("0.3.1", "0.2.0"): "cniVersion is '0.2.0'",
}


@pytest.mark.parametrize("text", BROKEN, ids=["no JSON", "without us", "version"])
def test_a_chain_with_faults_leaves_the_last_good_one(site: Site, text: str) -> None:
    """One message says what is wrong and where."""
    with changing(site):
        conflist.write_config_map(site.cluster, text)
        site.daemons[0].wait_problem(BROKEN[text])
        (problem,) = about_chain(site.daemons[0].status())
        assert problem.startswith("cni: ConfigMap kube-system/cni-configuration: ")
        assert problem.endswith(f"; {OWN_FILE} stays as it is")
        assert own_chain(site.nodes[0]) == CONFIG
        assert site.daemons[0].try_bgpd("status").returncode == 4


@pytest.mark.parametrize("how", ["the ConfigMap", "its key"])
def test_a_chain_that_is_gone_leaves_the_last_good_one(site: Site, how: str) -> None:
    """Pods go on to be attached."""
    with changing(site):
        if how == "its key":
            conflist.write_config_map(site.cluster, CONFIG, key="another")
        else:
            conflist.delete_config_map(site.cluster)
        site.daemons[0].wait_problem("there is no key cni-config" if how == "its key" else "there is no ConfigMap")
        assert own_chain(site.nodes[0]) == CONFIG
        site.nodes[0].run("late")
        site.nodes[0].wait_running("late")
        site.nodes[0].delete("late")


def test_a_name_that_contradicts_the_mode_is_told(site: Site) -> None:
    """Both stand in the message; the chain counts."""
    named = CONFIG.replace("generic-veth", "macvlan")
    with changing(site):
        conflist.write_config_map(site.cluster, named)
        told = site.daemons[0].wait_problem("they must agree")
        assert "the network's name macvlan means macvlan, chaining-mode generic-veth means veth" in told
        assert own_chain(site.nodes[0]) == named
