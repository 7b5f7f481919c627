"""The parts of a daemon that not every node has: which of them are built, of what, and what is followed for them.

Each is imported only where it is used: a daemon that does not masquerade starts without what masquerade needs. A part
that is off is taken out first, should an earlier life have left something of it in the kernel. What a part does is
its own business; `daemon` runs them, `console` answers for them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from bgpd.bgp.routing import Inputs
from bgpd.config.bgp import PeersFrom
from bgpd.config.load import Loaded
from bgpd.config.schema import Config, NodeRoutes
from bgpd.kube.feed import Feed
from bgpd.kube.networkpolicy import NETWORK_POLICY
from bgpd.kube.parse import CONFIG_MAP, NAMESPACE, NODE, POD, Kind
from bgpd.kube.service import ENDPOINT_SLICE, SERVICE
from bgpd.model.attachment import OWN_FILE
from bgpd.model.bgp import AdvertisementType
from bgpd.model.candidate import Candidate
from bgpd.model.configmap import ConfigMap
from bgpd.model.endpoint import Endpoints
from bgpd.model.node import Node
from bgpd.model.noderoute import MARK
from bgpd.model.pod import Namespace, Pod
from bgpd.model.policy import NetworkPolicy
from bgpd.model.service import EndpointSlice, Service
from bgpd.model.virtualserver import LABEL
from bgpd.model.virtualserver import MARK as VIRTUAL_SERVERS_MARK
from bgpd.observe import log
from bgpd.observe.metrics import Metrics
from bgpd.runtime.malloc import give_back_large_blocks
from bgpd.runtime.reconcile import Reconciler, Round, TargetError
from bgpd.runtime.store import Store

if TYPE_CHECKING:
    from bgpd.ciliumbgp.derive import Derived
    from bgpd.ciliumbgp.derive import Feeds as CiliumBgpFeeds
    from bgpd.cni.chaining import Chaining
    from bgpd.hostroutes.hostrouting import HostRouting
    from bgpd.masq.masquerading import Masquerading
    from bgpd.noderoutes.noderouting import NodeRouting
    from bgpd.policy.policing import Policing
    from bgpd.services.servicing import Servicing
    from bgpd.virtualservers.serving import Serving

    Running: TypeAlias = Masquerading | Policing | Chaining | NodeRouting | Servicing | Serving | Derived

ConfigMaps: TypeAlias = Store[Mapping[str, ConfigMap]]


def _objects() -> Store[Mapping[str, Any]]:
    return Store({})


def _candidates() -> Store[tuple[Candidate, ...]]:
    return Store(())


@dataclass(frozen=True, slots=True)
class Cluster:
    """What the source fills besides nodes, each only if somebody needs it: by namespace/name, or by name.

    And what parts make of it for others to announce: `host_routes`, `service_addresses`, `virtual_addresses`.
    """

    pods: Store[Mapping[str, Pod]] = field(default_factory=_objects)
    namespaces: Store[Mapping[str, Namespace]] = field(default_factory=_objects)
    policies: Store[Mapping[str, NetworkPolicy]] = field(default_factory=_objects)
    services: Store[Mapping[str, Service]] = field(default_factory=_objects)
    slices: Store[Mapping[str, EndpointSlice]] = field(default_factory=_objects)
    masquerade: ConfigMaps = field(default_factory=_objects)
    conflist: ConfigMaps = field(default_factory=_objects)
    virtual_servers: ConfigMaps = field(default_factory=_objects)
    host_routes: Store[tuple[Candidate, ...]] = field(default_factory=_candidates)
    service_addresses: Store[tuple[Candidate, ...]] = field(default_factory=_candidates)
    virtual_addresses: Store[tuple[Candidate, ...]] = field(default_factory=_candidates)
    cilium_bgp: CiliumBgpFeeds | None = None

    def candidates(self, config: Config) -> Iterator[Store[tuple[Candidate, ...]]]:
        """Those that a part will fill."""
        if config.bgp.announces(AdvertisementType.POD_IP):
            yield self.host_routes
        if config.bgp.announces(AdvertisementType.SERVICE):
            yield self.service_addresses
        if config.virtual_servers.enabled:
            yield self.virtual_addresses


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of a daemon that not every node has; None: it is off."""

    masquerading: Masquerading | None = None
    policing: Policing | None = None
    chaining: Chaining | None = None
    node_routing: NodeRouting | None = None
    host_routing: HostRouting | None = None
    services: Servicing | None = None
    virtual_servers: Serving | None = None
    derived: Derived | None = None

    @property
    def running(self) -> list[Running]:
        parts = self.masquerading, self.policing, self.chaining, self.node_routing
        return [part for part in (*parts, self.services, self.virtual_servers, self.derived) if part is not None]

    @property
    def telling(self) -> list[Running | HostRouting]:
        """Those that know of problems: host routing has nothing to run."""
        return [*self.running, *([self.host_routing] if self.host_routing else [])]

    @property
    def loops(self) -> Iterator[Reconciler[Any, Any]]:
        for part in (self.masquerading, self.policing, self.node_routing, self.virtual_servers):
            yield from part.loops if part is not None else ()


class Builder:
    """Builds them for one daemon. `report` takes every round, `noted` is called when /metrics may differ."""

    def __init__(
        self,
        config: Config,
        inputs: Inputs,
        cluster: Cluster,
        metrics: Metrics,
        report: Callable[[Round], None],
        noted: Callable[[], None],
        derived: Derived | None,
    ) -> None:
        self._config, self._inputs, self._cluster, self._derived = config, inputs, cluster, derived
        self._metrics, self._report, self._noted = metrics, report, noted
        self._log = log.get("daemon")

    def build(self) -> Parts:
        masquerading = self._masquerading()
        policing, chaining = self._policing()
        node_routing, host_routing = self._node_routing(), self._host_routing()
        announcing = host_routing, self._servicing(), self._serving()
        return Parts(masquerading, policing, chaining, node_routing, *announcing, self._derived)

    def _masquerading(self) -> Masquerading | None:
        config, inputs = self._config, self._inputs
        if not config.masquerade.translates and config.paths.bpf.is_dir():
            from bgpd.masq.masquerading import clear

            self._clear("masquerade", clear, config.paths.bpf)
        if not config.masquerade.enabled:
            return None
        from bgpd.masq.masquerading import Masquerading

        give_back_large_blocks()
        documents = self._cluster.masquerade
        masquerading = Masquerading(config.node.name, inputs.config, inputs.nodes, documents, self._report)
        masquerading.reading.on_change(self._noted)
        return masquerading

    def _policing(self) -> tuple[Policing | None, Chaining | None]:
        config, inputs = self._config, self._inputs
        if config.cni.chaining_mode is None and (config.paths.cni_conf / OWN_FILE).exists():
            from bgpd.cni.publish import remove

            remove(config.paths.cni_conf)  # or pods would wait for a daemon that serves no plugin
        if not config.policy.enabled:
            if config.paths.bpf.is_dir():
                from bgpd.cni.journal import namespaces
                from bgpd.policy.clear import clear

                pods = namespaces(config.paths.state)
                self._clear("policy", lambda directory: clear(directory, pods), config.paths.bpf)
            return None, None
        from bgpd.policy.policing import Policing
        from bgpd.policy.view import Objects

        endpoints: Store[Endpoints] = Store({})
        endpoints.on_change(self._noted)
        cluster = self._cluster
        objects = Objects(inputs.nodes, cluster.pods, cluster.namespaces, cluster.policies)
        policing = Policing(config.node.name, inputs.config, objects, endpoints, self._report)
        if config.cni.chaining_mode is None:
            endpoints.publish({})
            return policing, None
        from bgpd.cni.chaining import Chaining
        from bgpd.cni.protocol import Verb

        self._metrics.begin_requests(Verb)
        report = self._metrics.observe_request
        return policing, Chaining(
            config, cluster.conflist, endpoints, policing.enforced, policing.unready, report
        )

    def _node_routing(self) -> NodeRouting | None:
        config, inputs = self._config, self._inputs
        if config.node_routes is NodeRoutes.NONE:
            if (config.paths.state / MARK).exists():
                from bgpd.noderoutes.target import clear

                self._clear("node routes", clear, config.paths.state)
            return None
        from bgpd.noderoutes.noderouting import NodeRouting

        return NodeRouting(config.node.name, inputs.config, inputs.nodes, self._report)

    def _host_routing(self) -> HostRouting | None:
        config, cluster = self._config, self._cluster
        if not config.bgp.announces(AdvertisementType.POD_IP):
            return None
        from bgpd.hostroutes.hostrouting import HostRouting

        routing = HostRouting(config.node.name, self._inputs.nodes, cluster.pods, cluster.host_routes)
        cluster.host_routes.on_change(self._noted)
        return routing

    def _servicing(self) -> Servicing | None:
        config, cluster = self._config, self._cluster
        if not config.bgp.announces(AdvertisementType.SERVICE):
            return None
        from bgpd.services.servicing import Servicing

        addresses, has_own = cluster.service_addresses, config.source.kubernetes is not None
        addresses.on_change(self._noted)
        return Servicing(
            config.node.name, self._inputs.config, cluster.services, cluster.slices, addresses, has_own
        )

    def _serving(self) -> Serving | None:
        config, cluster = self._config, self._cluster
        mark = config.paths.state / VIRTUAL_SERVERS_MARK
        if not config.virtual_servers.enabled:
            if mark.exists():
                from bgpd.virtualservers.serving import clear

                self._clear("virtual servers", clear, config.paths.state)
            return None
        from bgpd.virtualservers.serving import Objects, Serving

        mark.touch()
        inputs = self._inputs
        objects = Objects(
            cluster.virtual_servers, cluster.services, cluster.slices, inputs.nodes, inputs.uplinks
        )
        offered, has_own = cluster.virtual_addresses, config.source.kubernetes is not None
        return Serving(config.node.name, self._inputs.config, objects, offered, self._report, self._noted, has_own)

    def _clear(self, what: str, clear: Callable[[Path], list[str]], directory: Path) -> None:
        """It is not ours now: what an earlier life has left in the kernel would go on doing its work."""
        try:
            removed = clear(directory)
        except TargetError as error:
            self._log.warning(f"{what} is not ours now", error=str(error))
        else:
            if removed:
                self._log.info(f"{what} is not ours now", removed=removed)


def derived(
    config: Config, file: Store[Loaded], nodes: Store[Mapping[str, Node]], objects: CiliumBgpFeeds | None
) -> Derived | None:
    """None: all of the configuration is in the file."""
    if objects is None:
        return None
    from bgpd.ciliumbgp.derive import Derived

    return Derived(config.node.name, file, nodes, objects)


def cilium_bgp_stores(config: Config) -> CiliumBgpFeeds | None:
    """Where Cilium's objects go; None: nobody asks for them."""
    if config.bgp.peers_from is not PeersFrom.CILIUM:
        return None
    from bgpd.ciliumbgp.derive import Feeds as CiliumBgpFeeds

    return CiliumBgpFeeds()


def cilium_bgp_feeds(objects: CiliumBgpFeeds) -> Iterator[Feed[Any]]:
    """All of each kind."""
    from bgpd.kube import ciliumbgp  # the specs are of no use to a node that does without

    yield Feed(ciliumbgp.CLUSTER_CONFIG, objects.cluster_configs)
    yield Feed(ciliumbgp.PEER_CONFIG, objects.peer_configs)
    yield Feed(ciliumbgp.ADVERTISEMENT, objects.advertisements)
    yield Feed(ciliumbgp.NODE_CONFIG_OVERRIDE, objects.overrides)


def conditioned_kinds() -> tuple[Kind[Any], ...]:
    """Of Cilium's objects, those that have a status."""
    from bgpd.kube import ciliumbgp

    return ciliumbgp.CLUSTER_CONFIG, ciliumbgp.PEER_CONFIG


def feeds(config: Config, nodes: Store[Mapping[str, Node]], cluster: Cluster) -> Iterator[Feed[Any]]:
    """What is followed: nothing that nobody needs, for the API server sends every change to every node."""
    own = config.node.name
    yield Feed(NODE, nodes, own) if config.node_routes is NodeRoutes.NONE else Feed(NODE, nodes, expected=own)
    if cluster.cilium_bgp is not None:
        yield from cilium_bgp_feeds(cluster.cilium_bgp)
    masquerade, cni = config.masquerade, config.cni
    if masquerade.enabled and masquerade.config.config_map is not None:
        yield Feed(CONFIG_MAP, cluster.masquerade, masquerade.config.config_map)
    if config.virtual_servers.enabled:
        yield Feed(CONFIG_MAP, cluster.virtual_servers, label=LABEL)
    if config.policy.enabled or config.bgp.announces(AdvertisementType.POD_IP):
        yield Feed(POD, cluster.pods)
    if config.policy.enabled:
        yield Feed(NAMESPACE, cluster.namespaces)
        yield Feed(NETWORK_POLICY, cluster.policies)
        if cni.chaining_mode is not None and cni.config_map is not None:
            yield Feed(CONFIG_MAP, cluster.conflist, cni.config_map)
    if config.virtual_servers.enabled or config.bgp.announces(AdvertisementType.SERVICE):
        yield Feed(SERVICE, cluster.services)
        yield Feed(ENDPOINT_SLICE, cluster.slices)
