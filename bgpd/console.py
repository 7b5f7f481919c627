"""Answers the command line: the handlers behind `status.sock`, and what counts as a problem on this node.

Reads the daemon's parts and changes only two things, on request: the drain, and the configuration once it was
found good. The wording of answers is the stable JSON interface of `bgpd -o json`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bgpd import __version__
from bgpd.bgp import view
from bgpd.bgp.bfd import Bfd
from bgpd.bgp.drain import Drainer, DrainError
from bgpd.bgp.plan import BgpPlan, Drain
from bgpd.bgp.routing import Inputs, Routing
from bgpd.config.load import Loaded, load
from bgpd.config.restart import Pending, waiting
from bgpd.kube.sources import Source
from bgpd.model.attachment import AttachmentKey
from bgpd.model.bgp import Family, RouteKey
from bgpd.model.brief import brief
from bgpd.model.fault import FaultsError
from bgpd.model.prefix import Prefix, PrefixError, parse_address, sort_key
from bgpd.observe.control import ControlError, Handler, Progress
from bgpd.parts import Parts
from bgpd.runtime.reconcile import TargetError
from bgpd.runtime.store import Store

if TYPE_CHECKING:  # a node that does not use one does without
    from bgpd.masq.sight import Sight
    from bgpd.noderoutes.sight import Sight as NodeRoutesSight
    from bgpd.policy.sight import Sight as PolicySight
    from bgpd.services.sight import Sight as ServicesSight
    from bgpd.virtualservers.sight import Sight as VirtualServersSight

POLICY_COMMANDS = ("endpoints", "policy list", "policy explain", "policy audit", "flows")
"""Known where policy is off too."""


@dataclass(slots=True)
class ConfigState:
    """What became of the last attempt to read the configuration. `faults` empty: it is the one in use."""

    file: Path
    loaded_at: float
    faults: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


class Console:
    """The handlers. `loaded` is what the file says; `inputs.config`, the configuration in effect, follows it."""

    def __init__(
        self,
        file: Path,
        loaded: Store[Loaded],
        inputs: Inputs,
        routing: Routing,
        bfd: Bfd,
        source: Source,
        drainer: Drainer,
        parts: Parts,
    ) -> None:
        self.routing, self.bfd, self.source, self.parts = routing, bfd, source, parts
        self._file, self._inputs, self._drainer = loaded, inputs, drainer
        self._running = self._loaded.config  # what the process was started with: some of it no reload changes
        self._started = time.monotonic()
        self.wall_clock_offset_s = time.time() - time.monotonic()  # one for good: a time must not jitter
        self._source_error = ("", 0)
        self._source_error_at: float | None = None  # monotonic seconds
        source.status.on_change(self._note_source_error)
        self._advertised_of: tuple[BgpPlan | None, frozenset[Prefix] | None] = None, None
        self.masquerade: Sight | None = None
        if parts.masquerading is not None:
            from bgpd.masq.sight import Sight

            pins = self._running.paths.bpf
            self.masquerade = Sight(parts.masquerading, inputs.config, lambda: self._advertised, pins)
        self.policy: PolicySight | None = None
        if parts.policing is not None:
            from bgpd.policy.sight import Sight as PolicySight

            self.policy = PolicySight(parts.policing, lambda: _blocked(parts), self.wall_clock_offset_s)
        self.node_routes: NodeRoutesSight | None = None
        if parts.node_routing is not None:
            from bgpd.noderoutes.sight import Sight as NodeRoutesSight

            self.node_routes = NodeRoutesSight(parts.node_routing, inputs.nodes)
        self.virtual_servers: VirtualServersSight | None = None
        if parts.virtual_servers is not None:
            from bgpd.virtualservers.sight import Sight as VirtualServersSight

            self.virtual_servers = VirtualServersSight(parts.virtual_servers)
        self.services: ServicesSight | None = None
        if parts.services is not None:
            from bgpd.services.sight import Sight as ServicesSight

            self.services = ServicesSight(parts.services)
        # called after every attempt to reload, with what waits for a restart; see `config_state`
        self.on_reload: Callable[[Pending], None] = lambda pending: None
        self.config_state = ConfigState(file, time.time(), (), tuple(map(str, self._loaded.warnings)))

    @property
    def drain(self) -> Drain:
        return self._inputs.drain.newest.value

    @property
    def unhealthy(self) -> str:
        """Why the health checks keep this node's routes withdrawn; empty when they do not."""
        return self._inputs.health.newest.value.reason

    @property
    def synced(self) -> bool:
        """Whether everything is known that says what this node announces to whom."""
        return self._inputs.complete

    @property
    def source_faults(self) -> int:
        """Objects and files that cannot be read, and what is asked for in them and not to be had."""
        derived = self.parts.derived
        return len(self.source.status.newest.value.faults) + (derived.faults if derived else 0)

    @property
    def source_kind(self) -> str:
        """`kubernetes` or `manifests`, as the configuration calls it: the one in use, whatever was reloaded."""
        return "kubernetes" if self._running.source.manifests is None else "manifests"

    @property
    def source_error_at(self) -> float | None:
        """When the source last failed, Unix seconds."""
        return None if self._source_error_at is None else self._source_error_at + self.wall_clock_offset_s

    @property
    def _advertised(self) -> frozenset[Prefix] | None:
        """What is announced to at least one peer; None: nothing is, on purpose. One object for each plan."""
        plan = self.routing.plan
        if plan is not self._advertised_of[0]:
            silent = self.drain is Drain.WITHDRAWN or self.unhealthy
            self._advertised_of = plan, None if silent else frozenset(key.prefix for key in plan.routes)
        return self._advertised_of[1]

    @property
    def handlers(self) -> Mapping[str, Handler]:
        return {
            "status": self._status,
            "peers": self._peers,
            "routes": self._routes,
            "drain": self._drain,
            "undrain": self._undrain,
            "reload": self._reload,
            "masq list": self._masq_list,
            "masq test": self._masq_test,
            **(self.node_routes.handlers if self.node_routes else {"noderoutes list": _node_routes_off}),
            "virtualservers list": _virtual_servers_off,
            **(self.virtual_servers.handlers if self.virtual_servers else {}),
            **(self.policy.handlers if self.policy else dict.fromkeys(POLICY_COMMANDS, _policy_off)),
        }

    @property
    def _loaded(self) -> Loaded:
        return self._inputs.config.newest.value

    def reload(self) -> dict[str, Any]:
        """Reads the configuration and puts it to use, or keeps the last good one. FaultsError: what was wrong."""
        state = self.config_state
        try:
            loaded = load(state.file)
        except FaultsError as error:
            state.faults = tuple(map(str, error.faults))
            self.on_reload(Pending())
            raise
        state.faults, state.warnings, state.loaded_at = (), tuple(map(str, loaded.warnings)), time.time()
        self._file.publish(loaded)
        pending = waiting(self._running, loaded.config)
        self.on_reload(pending)
        return {
            "warnings": list(state.warnings),
            "needsRestart": list(pending.daemon),
            "needsSpeakerRestart": list(pending.speaker),
        }

    def problems(self) -> list[str]:
        """Everything an operator should know about, the most basic first; empty on a healthy node."""
        routing, plan, speaker = self.routing, self.routing.plan, self.routing.speaker.state.newest.value
        found = []
        if self.config_state.faults:
            refused = "the configuration is refused, the last good one stays in use"
            found += brief(self.config_state.faults, lambda fault: f"{refused}: {fault}")
        source = self.source.status.newest.value
        if source.state != "synced":
            found.append(f"source: {source.state}" + (f": {source.last_error}" if source.last_error else ""))
        found += brief(source.faults, lambda fault: f"source: {fault}")
        if source.warning:
            found.append(f"source: {source.warning}")
        if routing.node is not None:
            found += brief(routing.node.problems)
        if routing.held is not None:
            found.append(f"routes not wanted: {routing.held.routes}, {routing.held.until}")
        silence = speaker.reason if not speaker.connected else routing.speaker.silence
        if silence:
            found.append(f"speaker: {silence}")
        found += brief(
            [row for row in self.peer_rows() if row["why"] and row["state"] != "unknown"],  # the speaker's matter
            lambda row: f"peer {row['peer']} is {row['state']}: {row['why']}",
        )
        if self.unhealthy:
            found.append(f"unhealthy, everything is withdrawn: {self.unhealthy}")
        elif self.drain is not Drain.WITHDRAWN:
            elsewhere = {key.prefix for key in (*plan.routes, *plan.refused, *plan.withheld)}
            homeless = {key.prefix for key in plan.unsuited} - elsewhere
            found += brief(
                sorted(homeless, key=sort_key),
                lambda prefix: f"{prefix} goes to no peer: none has {Family.of(prefix).value} in families",
            )
            found += brief(plan.refused.items(), lambda refusal: f"{_route(refusal[0])} is refused: {refusal[1]}")
        if self._drainer.broken_off:
            found.append("a drain was broken off: `bgpd drain` takes it up again, `bgpd undrain` takes it back")
        found += brief(
            [(key, outcome) for key, outcome in routing.routes.trouble.items() if isinstance(key, RouteKey)],
            lambda trouble: f"{_route(trouble[0])} is not as wanted: {trouble[1].reason}",
        )
        for loop in (routing.sessions, routing.routes):
            if loop.error and speaker.connected:
                found.append(f"{loop.name}: {loop.error}")
        if self.bfd.problem:
            found.append(f"bfd: {self.bfd.problem}")
        for part in self.parts.telling:
            found += brief(list(part.problems()))
        if self.policy is not None:
            found += self.policy.problems()
        return found

    def _note_source_error(self) -> None:
        newest = self.source.status.newest
        error = (newest.value.last_error, newest.value.reconnects)
        if newest.value.last_error and error != self._source_error:
            self._source_error, self._source_error_at = error, newest.at

    # --- handlers -----------------------------------------------------------------------------------------

    async def _status(self, arguments: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
        source, node = self.source.status.newest.value, self.routing.node
        speaker, held = self.routing.speaker.state.newest.value, self.routing.held
        state = self.config_state
        error_at = self._source_error_at
        error_ago_s = None if error_at is None else round(time.monotonic() - error_at, 1)
        pending = waiting(self._running, self._file.newest.value.config)
        return {
            "node": self.routing.node_name,
            "version": __version__,
            "uptime_s": round(time.monotonic() - self._started, 1),
            "config": {
                "file": str(state.file),
                "state": "in use" if not state.faults else "refused, running on the last good one",
                "faults": list(state.faults),
                "warnings": list(state.warnings),
                "needsRestart": list(pending.daemon),
                "needsSpeakerRestart": list(pending.speaker),
            },
            "source": {
                "kind": self.source_kind,
                "state": source.state,
                "lastError": source.last_error,
                "lastErrorAgo_s": error_ago_s,
            },
            "podCIDRs": [str(prefix) for prefix in node.pod_cidrs] if node else [],
            "speaker": {"connected": speaker.connected, "reason": speaker.reason},
            "drain": self.drain.value,
            "held": asdict(held) if held else None,
            "masquerade": await self.masquerade.status() if self.masquerade else None,
            "policy": self.policy.status() if self.policy else None,
            "nodeRoutes": self.node_routes.status() if self.node_routes else None,
            "hostRoutes": self.parts.host_routing.status() if self.parts.host_routing else None,
            "virtualServers": self.virtual_servers.status() if self.virtual_servers else None,
            "services": self.services.status() if self.services else None,
            "ciliumBGP": self.parts.derived.status() if self.parts.derived else None,
            "peers": self.peer_rows(),
            "problems": self.problems(),
        }

    async def _peers(self, arguments: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
        return {"peers": self.peer_rows()}

    async def _routes(self, arguments: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
        routing, peer = self.routing, arguments.get("peer")
        names = [place.name for place in routing.plan.places]
        if peer is not None and peer not in names:
            raise ControlError(f"no peer {peer!r}; configured are {', '.join(names)}", 2)
        state = routing.speaker.state.newest.value
        have, trouble, held = routing.routes.have, routing.routes.trouble, routing.held
        leaving = held.until if held else "withdrawal pending"
        bfd = self.bfd.state.newest.value
        return {"routes": view.routes(routing.plan, state, have, trouble, leaving, peer, bfd)}

    async def _drain(self, arguments: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
        wait_s = arguments.get("wait_s")
        if wait_s is None:
            wait_s = self._loaded.config.bgp.drain.wait_seconds
        if not isinstance(wait_s, int | float) or not 0 <= wait_s < math.inf:
            raise ControlError(f"--wait {wait_s}: must be a number of seconds, 0 or more", 2)
        try:
            return {"withdrawn": await self._drainer.drain(self.routing, float(wait_s), progress)}
        except (DrainError, OSError) as error:
            raise ControlError(str(error), 1) from None

    async def _undrain(self, arguments: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
        try:
            return {"announced": await self._drainer.undrain(self.routing, progress)}
        except (DrainError, OSError) as error:
            raise ControlError(str(error), 1) from None

    async def _reload(self, arguments: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
        try:
            return self.reload()
        except FaultsError as error:
            raise ControlError(f"kept the last good configuration; refused:\n{error}", 2) from None

    async def _masq_list(self, arguments: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
        try:
            return await self._masquerade_on().list(hits=bool(arguments.get("hits")))
        except TargetError as error:
            raise ControlError(str(error), 1) from None

    async def _masq_test(self, arguments: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
        try:
            address = parse_address(str(arguments.get("address")))
        except PrefixError as error:
            raise ControlError(str(error), 2) from None
        return self._masquerade_on().test(address)

    def _masquerade_on(self) -> Sight:
        if self.masquerade is None:
            raise ControlError("masquerade is off on this node; masquerade.enabled: true turns it on", 2)
        return self.masquerade

    def peer_rows(self) -> list[dict[str, Any]]:
        routing = self.routing
        return view.peers(
            routing.plan,
            routing.speaker.state.newest.value,
            routing.routes.have,
            routing.sessions.trouble,
            time.monotonic(),
            self.bfd.state.newest.value,
        )


async def _virtual_servers_off(arguments: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    raise ControlError("virtual servers are off on this node; virtualServers: {enabled: true} turns them on", 2)


async def _node_routes_off(arguments: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    raise ControlError("node routes are off on this node; nodeRoutes: auto turns them on", 2)


async def _policy_off(arguments: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    raise ControlError("NetworkPolicy is off on this node; policy.enabled: true turns it on", 2)


def _blocked(parts: Parts) -> Mapping[AttachmentKey, str]:
    """The endpoints that policy cannot be enforced on any more; without the plugin there are none."""
    return parts.chaining.attacher.blocked if parts.chaining is not None else {}


def _route(key: RouteKey) -> str:
    return f"{key.prefix} to {key.peer}"
