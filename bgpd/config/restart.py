"""What of a changed configuration waits for a restart, of daemon or speaker; a reload takes over everything else.

Decides which keys those are; telling an operator is `console`'s and `chronicle`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from bgpd.config.bgp import SpeakerMode
from bgpd.config.schema import Config, NodeRoutes
from bgpd.model.bgp import AdvertisementType

# what only a new daemon can take over, by key path
NEEDS_RESTART: Mapping[str, Callable[[Config], Any]] = {
    "node.name": lambda config: config.node.name,
    "paths": lambda config: config.paths,
    "source": lambda config: config.source,
    "bgp.peersFrom": lambda config: config.bgp.peers_from,
    "bgp.speaker": lambda config: config.bgp.speaker,
    "bgp.advertisements (PodIP or not)": lambda config: config.bgp.announces(AdvertisementType.POD_IP),
    "metrics.listen": lambda config: config.metrics.listen,
    "bgp.health": lambda config: config.bgp.health,
    "masquerade.enabled": lambda config: config.masquerade.enabled,
    "masquerade.config": lambda config: config.masquerade.config,
    "masquerade.map": lambda config: config.masquerade.map,
    "masquerade.compat, .ipv6, .nomasqAllReservedRanges": lambda config: (
        config.masquerade.compat,
        config.masquerade.ipv6_wanted,
        config.masquerade.nomasq_all_reserved_ranges,
    ),
    "nodeRoutes (none or not)": lambda config: config.node_routes is NodeRoutes.NONE,
    "virtualServers.enabled": lambda config: config.virtual_servers.enabled,
    "bgp.advertisements (Service or not)": lambda config: config.bgp.announces(AdvertisementType.SERVICE),
    "policy.enabled": lambda config: config.policy.enabled,
    "cni": lambda config: config.cni,
    "log": lambda config: config.log,
}
# what only a new ExaBGP can take over
NEEDS_SPEAKER_RESTART: Mapping[str, Callable[[Config], Any]] = {
    "bgp.endOfRIBTimeoutSeconds": lambda config: config.bgp.end_of_rib_timeout_seconds,
}


@dataclass(frozen=True, slots=True)
class Pending:
    """The key paths of what the newest configuration changes and only a restart of one or the other takes over."""

    daemon: tuple[str, ...] = ()
    speaker: tuple[str, ...] = ()


def waiting(running: Config, newest: Config) -> Pending:
    """What differs from the configuration that the daemon was started with.

    A speaker that was restarted since is not known of: it is named until the daemon is restarted too.
    """

    def changed(keys: Mapping[str, Callable[[Config], Any]]) -> tuple[str, ...]:
        return tuple(key for key, get in keys.items() if get(newest) != get(running))

    daemon, speaker = changed(NEEDS_RESTART), changed(NEEDS_SPEAKER_RESTART)
    if running.bgp.speaker is SpeakerMode.MANAGED:  # the daemon's child: the one restart is the other's too
        return Pending((*daemon, *speaker))
    return Pending(daemon, speaker)
