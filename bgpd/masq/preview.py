"""What would come of the masquerade document, for `bgpd check`: read and judged as the daemon does.

Touches neither kernel nor daemon. What is printed of it is the command's business.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from bgpd.config.masquerade import Masquerade
from bgpd.masq.lint import findings, surroundings
from bgpd.masq.plan import Rule, plan, rules_of
from bgpd.masq.source import ConfigMapSource, FileSource
from bgpd.model.configmap import ConfigMap
from bgpd.model.masq import Finding, MasqDocument, Reading
from bgpd.model.node import Node
from bgpd.model.outcome import Blocked
from bgpd.model.prefix import Prefix
from bgpd.runtime.store import Store


@dataclass(frozen=True, slots=True)
class Preview:
    """`document` None: it has `faults`, or only the API server knows it, which `note` then says.

    `blocked` says why a family would not be masqueraded although it should be. Rules and what blocks them are those
    of a node that is known.
    """

    document: MasqDocument | None
    listed: tuple[Prefix, ...] = ()
    rules: tuple[Rule, ...] = ()
    blocked: tuple[str, ...] = ()
    faults: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()
    note: str = ""


def preview(
    masquerade: Masquerade,
    node: Node | None,
    config_maps: Store[Mapping[str, ConfigMap]] | None,
    advertised: Collection[Prefix],
) -> Preview:
    """`config_maps` None: only the API server has them. `advertised`: what the node would announce to any peer."""
    place, rules = masquerade.config, rules_of(masquerade)
    reading = Store(Reading())
    if place.path is not None:
        FileSource(place.path, rules, reading, settle_s=0).read()
    elif place.config_map is not None and config_maps is not None:
        ConfigMapSource(place.config_map, rules, config_maps, reading).read()
    else:
        return Preview(None, note=f"the ConfigMap {place.config_map} is not known here, only to the API server")
    document = reading.newest.value.document
    if document is None:
        return Preview(None, faults=tuple(map(str, reading.newest.value.faults)))
    return _preview(masquerade, document, node, advertised)


def _preview(
    masquerade: Masquerade, document: MasqDocument, node: Node | None, advertised: Collection[Prefix]
) -> Preview:
    planned = plan(masquerade, document, node)
    families = [family for family in (planned.v4, planned.v6) if family is not None]
    listed = [key.prefix for family in families for key in family.entries]
    rules = [family.rule for family in families] if node is not None and planned.translates else []
    note = f"{document.origin} gives no list, so the one that compat: {masquerade.compat} has for want of one counts"
    return Preview(
        document,
        listed=tuple(sorted(listed, key=lambda it: (it.version, int(it.network_address), it.prefixlen))),
        rules=tuple(rule for rule in rules if isinstance(rule, Rule)),
        blocked=tuple(rule.reason for rule in rules if isinstance(rule, Blocked)),
        findings=findings(document, surroundings(masquerade, node, advertised)),
        note=note if document.is_default else "",
    )
