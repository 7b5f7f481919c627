"""Decides what `05-bgpd.conflist` is: the chain that the node has, with us at its end. Pure.

The runtime takes the first file of the directory (CNI specification, section 1; kubelet's runtimes read `.conf`,
`.conflist` and `.json` in the order of their names). Ours comes before the one that it copies, so that removing ours
gives the node back as it was. The network keeps its name: what pods were attached under it is also what they are
detached under.

One thing of it is changed: a macvlan in mode bridge is made in mode vepa. Its frames then all pass the parent, where
they are judged and handed to whom they are for on this node, so pods reach each other as in mode bridge; in that mode
the kernel hands some over where nobody sees them. The other modes mean something else, and stay.

Or an operator writes the whole chain, in a ConfigMap, and it counts as it stands.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from bgpd.cni.protocol import DEADLINE_S, PLUGIN_TYPE, VERSIONS
from bgpd.cni.result import Json, release
from bgpd.model.attachment import NAMED, OWN_FILE, READ_BY_RUNTIMES, ChainingMode, InterfaceKind

CONFIG_MAP_KEY = "cni-config"
SOCKET = Path("/run/bgpd/cni.sock")
QUEUE = Path("/var/lib/bgpd/cni-queue")

_KEPT = f"{OWN_FILE} stays as it is"
_KINDS = {
    "bridge": InterfaceKind.VETH,
    "flannel": InterfaceKind.VETH,
    "ptp": InterfaceKind.VETH,
    "macvlan": InterfaceKind.MACVLAN,
    "ipvlan": InterfaceKind.IPVLAN,
}


@dataclass(frozen=True, slots=True)
class Settings:
    """What our entry in the chain says. What it leaves out is the plugin's default, so that it stays short."""

    mode: ChainingMode = ChainingMode.AUTO
    socket: Path = SOCKET
    queue: Path = QUEUE
    deadline_s: int = DEADLINE_S

    @property
    def entry(self) -> Json:
        told: Json = {"type": PLUGIN_TYPE}
        if self.mode is not ChainingMode.AUTO:
            told["chaining-mode"] = self.mode.value
        if self.socket != SOCKET:
            told["socket"] = str(self.socket)
        if self.queue != QUEUE:
            told["queue"] = str(self.queue)
        if self.deadline_s != DEADLINE_S:
            told["deadline-seconds"] = self.deadline_s
        return told


class Action(Enum):
    """What is done about our file."""

    WRITE = "write"
    KEEP = "keep"
    REMOVE = "remove"


@dataclass(frozen=True, slots=True)
class Plan:
    """`content` is b"" unless it is to be written, `target` what it was made from. `problem`: why it is not written,
    with the remedy; empty when there is nothing to put right."""

    action: Action
    target: str = ""
    content: bytes = b""
    warnings: tuple[str, ...] = ()
    problem: str = ""


class _ChainError(Exception):
    """This is no chain that can be ours; the text says why and what would be right."""


def chained(files: Mapping[str, bytes], settings: Settings) -> Plan:
    """From the files of the runtime's directory, by name; ours may be among them and does not count."""
    names = sorted(name for name in files if name.endswith(READ_BY_RUNTIMES) and name != OWN_FILE)
    targets = [name for name in names if name > OWN_FILE]
    warnings = tuple(
        f"{name} comes before {OWN_FILE}, and runtimes use it instead; rename it unless it delegates to {OWN_FILE}, "
        "as multus does"
        for name in names
        if name < OWN_FILE
    )
    if not targets:
        text = (
            f"no {', '.join(READ_BY_RUNTIMES)} file to chain to; install the main CNI plugin, or set cni.configMap"
        )
        return Plan(Action.REMOVE, warnings=warnings, problem=text)
    target = targets[0]
    try:
        chain = _chain(files[target], target)
        if _own_entries(chain["plugins"]):
            return Plan(Action.REMOVE, target, warnings=warnings + _contradictions(chain, settings))
        chain["plugins"] = [*map(_judged_at_parent, chain["plugins"]), settings.entry]
    except _ChainError as error:
        # it may be half written; what was made from it before goes on to work
        return Plan(Action.KEEP, target, warnings=warnings, problem=f"{target}: {error}; {_KEPT}")
    content = json.dumps(chain, indent=2, ensure_ascii=False).encode() + b"\n"
    return Plan(Action.WRITE, target, content, warnings + _contradictions(chain, settings))


def verbatim(text: str | None, origin: str, settings: Settings) -> Plan:
    """From what an operator wrote; None: there is no such ConfigMap, or not that key in it."""
    if text is None:
        text = f"there is no key {CONFIG_MAP_KEY}; give the whole conflist in it, or drop cni.configMap"
        problem = f"{origin}: {text}; {_KEPT}"
        return Plan(Action.KEEP, origin, problem=problem)
    content = text.encode("utf-8", "surrogatepass")
    try:
        chain = _chain(content, OWN_FILE)
        if not _own_entries(chain["plugins"]):
            hint = ", in the place of cilium-cni" if _of_type(chain["plugins"], "cilium-cni") else ""
            raise _ChainError(
                f'no plugin has the type {PLUGIN_TYPE}; add {{"type": "{PLUGIN_TYPE}"}} as the last{hint}'
            )
    except _ChainError as error:
        return Plan(Action.KEEP, origin, problem=f"{origin}: {error}; {_KEPT}")
    return Plan(Action.WRITE, origin, content, _contradictions(chain, settings))


def _judged_at_parent(plugin: Json) -> Json:
    return {**plugin, "mode": "vepa"} if _is_bridging(plugin) else plugin


def _is_bridging(plugin: Json) -> bool:
    """Bridge is what a macvlan is when nothing is said."""
    return plugin["type"] == InterfaceKind.MACVLAN.value and plugin.get("mode") in (None, "", "bridge")


def _chain(data: bytes, name: str) -> Json:
    """The configuration as a list, in a version that can be chained and that we speak."""
    try:
        value: Any = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise _ChainError(f"it is no JSON: {error}") from None
    if not isinstance(value, dict):
        raise _ChainError("it is no JSON object")
    if "plugins" not in value:
        if name.endswith(".conflist") or not isinstance(value.get("type"), str):
            raise _ChainError("it has no list 'plugins'")
        value = _as_list(value)
    plugins = value["plugins"]
    if not isinstance(plugins, list) or not plugins or not all(_is_plugin(each) for each in plugins):
        raise _ChainError("'plugins' must be a list of objects that have a 'type'")
    if not isinstance(value.get("name"), str) or not value["name"]:
        raise _ChainError("it has no 'name'")
    return {**value, **_versions(value)}


def _as_list(single: Json) -> Json:
    """A configuration of one plugin, as CNI 1.0.0 and later want it."""
    of_list = ("cniVersion", "cniVersions", "name", "disableCheck", "disableGC")
    head = {key: single[key] for key in of_list if key in single}
    return head | {"plugins": [{key: value for key, value in single.items() if key not in of_list}]}


def _versions(chain: Json) -> Json:
    """0.3.0 is raised to 0.3.1, which is the same but for a typing error of the specification."""
    version = chain.get("cniVersion")
    known = {"0.3.0": VERSIONS[0]} | {each: each for each in VERSIONS}
    if version not in known:
        found = f"cniVersion is {version!r}" if version else "cniVersion is missing"
        raise _ChainError(f"{found}; {PLUGIN_TYPE} can be chained in {', '.join(VERSIONS)}")
    told: Json = {"cniVersion": known[version]}
    if isinstance(chain.get("cniVersions"), list):  # the runtime takes the highest one that it knows
        told["cniVersions"] = sorted({known[each] for each in chain["cniVersions"] if each in known}, key=release)
    return told


def _is_plugin(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("type"), str)


def _of_type(plugins: Sequence[Json], kind: str) -> list[Json]:
    return [each for each in plugins if each["type"] == kind]


def _own_entries(plugins: Sequence[Json]) -> list[Json]:
    return _of_type(plugins, PLUGIN_TYPE)


def _contradictions(chain: Json, settings: Settings) -> tuple[str, ...]:
    """What in a chain with our entry says one thing, and another another."""
    (entry, *others) = _own_entries(chain["plugins"])
    told = entry.get("chaining-mode", settings.mode.value)
    found = [f"{PLUGIN_TYPE} is {len(others) + 1} times in 'plugins'; leave it in once"] if others else []
    if told not in list(ChainingMode):
        return (*found, f"chaining-mode is {told!r}; give one of {', '.join(ChainingMode)}")
    mode, name = ChainingMode(told), chain["name"]
    if mode in NAMED and name != mode.value:
        found.append(
            f"the network's name is {name}, and chaining-mode {mode}: who chains by that mode finds its network by "
            "the same name, so they must agree"
        )
    by_name = ChainingMode(name).kind if name in list(ChainingMode) else None
    if by_name and mode.kind and by_name is not mode.kind:
        found.append(
            f"the network's name {name} means {by_name}, chaining-mode {mode} means {mode.kind}; they must agree"
        )
    main = chain["plugins"][0]["type"]
    kind = mode.kind or by_name
    if kind and _KINDS.get(main, kind) is not kind:
        said = f"chaining-mode {mode}" if mode.kind else f"the network's name {name}"
        found.append(f"{said} means {kind}, but the main plugin {main} makes {_KINDS[main]}; they must agree")
    if any(map(_is_bridging, chain["plugins"])):
        found.append(
            'macvlan in mode bridge: what pods of a node send to groups is not judged, and one may pose as another; '
            'set "mode": "vepa"'
        )
    for key, ours, default in (("socket", settings.socket, SOCKET), ("queue", settings.queue, QUEUE)):
        if (theirs := entry.get(key, str(default))) != str(ours):
            found.append(f"{key} of {PLUGIN_TYPE} is {theirs}, but bgpd's is {ours}; they must agree")
    return tuple(found)
