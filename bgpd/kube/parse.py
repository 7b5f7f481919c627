"""Turns Kubernetes objects into our own values, and says what is wrong with those that do not fit.

Decides which fields of an object count and what a strange value in one means. It does not fetch anything,
and does not decide what becomes of an object that cannot be read: `mirror` and `manifests` do, for the API
server and for files. The structs hold only the fields that are used (core/v1 NodeSpec, NodeStatus, ConfigMap, Pod,
Namespace). NetworkPolicy has a file of its own, `networkpolicy`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import msgspec

from bgpd.model.configmap import ConfigMap, Origin
from bgpd.model.fault import FieldFault, FieldPath, dotted
from bgpd.model.node import Node
from bgpd.model.pod import AUDIT, HOST_ROUTE, NAME_LABEL, ContainerPort, Namespace, Pod
from bgpd.model.policy import Protocol
from bgpd.model.prefix import Address, Prefix, PrefixError, family_of, parse_address, parse_prefix

T = TypeVar("T")

_PLACE = re.compile(r"^(?P<problem>.*?)(?: - at `(?:key` in `)?\$(?P<path>[^`]*)`)?$", re.DOTALL)
_STEP = re.compile(r"\.(?P<key>[^.\[]+)|\[(?P<index>\d+)\]")
_WORDS = {"str": "a string", "int": "a number", "float": "a number", "bool": "a boolean", "null": "nothing"}
_WORDS |= {"array": "a list", "object": "a mapping"}


class Malformed(Exception):
    """An object that does not have the shape of its kind.

    `key` is None when not even the object's name can be read; `path` leads to the field, from the object.
    """

    def __init__(self, key: str | None, path: FieldPath, problem: str) -> None:
        super().__init__(f"{dotted(path)}: {problem}" if path else problem)
        self.key, self.path, self.problem = key, path, problem


# Every field may be null: that is how Go writes an empty list, and how YAML writes an empty key.
class RawMeta(msgspec.Struct, frozen=True, gc=False, rename="camel"):
    name: str
    namespace: str | None = None
    uid: str | None = None
    resource_version: str | None = None
    labels: dict[str, str] | None = None


class RawObject(msgspec.Struct, frozen=True, gc=False):
    """What every object has; the kinds add to it."""

    metadata: RawMeta


class RawDatedMeta(RawMeta, frozen=True, gc=False, rename="camel"):
    creation_timestamp: str | None = None


class RawNodeSpec(msgspec.Struct, frozen=True, gc=False):
    pod_cidr: str | None = msgspec.field(default=None, name="podCIDR")
    pod_cidrs: list[str] | None = msgspec.field(default=None, name="podCIDRs")


class RawNodeAddress(msgspec.Struct, frozen=True, gc=False):
    type: str
    address: str


class RawNodeStatus(msgspec.Struct, frozen=True, gc=False):
    addresses: list[RawNodeAddress] | None = None


class RawNode(RawObject, frozen=True, gc=False):
    spec: RawNodeSpec | None = None
    status: RawNodeStatus | None = None


class RawNamespaceMeta(RawMeta, frozen=True, gc=False, rename="camel"):
    annotations: dict[str, str] | None = None


class RawNamespace(RawObject, frozen=True, gc=False):
    metadata: RawNamespaceMeta


class RawConfigMap(RawObject, frozen=True, gc=False):
    metadata: RawDatedMeta
    data: dict[str, str] | None = None


class RawPodAnnotations(msgspec.Struct, frozen=True, gc=False):
    """Other people's may be long; none of them is kept."""

    host_route: str | None = msgspec.field(default=None, name=HOST_ROUTE)


class RawPodMeta(RawDatedMeta, frozen=True, gc=False, rename="camel"):
    annotations: RawPodAnnotations | None = None
    deletion_timestamp: str | None = None


class RawContainerPort(msgspec.Struct, frozen=True, gc=False, rename="camel"):
    container_port: int
    name: str | None = None
    protocol: str | None = None


class RawContainer(msgspec.Struct, frozen=True, gc=False, rename="camel"):
    ports: list[RawContainerPort] | None = None
    restart_policy: str | None = None


class RawPodSpec(msgspec.Struct, frozen=True, gc=False, rename="camel"):
    node_name: str | None = None
    host_network: bool | None = None
    containers: list[RawContainer] | None = None
    init_containers: list[RawContainer] | None = None


class RawPodIP(msgspec.Struct, frozen=True, gc=False):
    ip: str


class RawPodStatus(msgspec.Struct, frozen=True, gc=False):
    phase: str | None = None
    pod_ip: str | None = msgspec.field(default=None, name="podIP")
    pod_ips: list[RawPodIP] | None = msgspec.field(default=None, name="podIPs")


class RawPod(RawObject, frozen=True, gc=False):
    metadata: RawPodMeta
    spec: RawPodSpec | None = None
    status: RawPodStatus | None = None


@dataclass(frozen=True, slots=True)
class Kind(Generic[T]):
    """One kind of object: where the API has it, which of its fields we read, what we make of them.

    `to_model` takes a `raw` and never fails: what it cannot use it notes in the value it makes. `if_absent` is for
    an operator whose wanted object is not there: what to look at. `faults` tells of a value what in it could not be
    read, with its place in the object. `if_unserved` is for an operator whose API server does not know the
    kind, which is then as if there were no such object; empty: every API server knows it. `located` notes in a value
    where a file has it, for who finds faults later; it is given the file, and line and column by path in the object.
    """

    name: str
    api_version: str
    resource: str
    namespaced: bool
    raw: type[RawObject]
    to_model: Callable[[Any], T]
    if_absent: str = ""
    faults: Callable[[T], Iterable[FieldFault]] | None = None
    if_unserved: str = ""
    located: Callable[[T, str, Callable[[FieldPath], tuple[int, int]]], T] | None = None

    @property
    def group(self) -> str:
        """The API group as RBAC rules name it: the core group is the empty string."""
        return self.api_version.rpartition("/")[0]

    def path(self, namespace: str = "") -> str:
        """The collection, of one namespace or of all."""
        root = f"/{'apis' if self.group else 'api'}/{self.api_version}"
        return f"{root}/namespaces/{namespace}/{self.resource}" if namespace else f"{root}/{self.resource}"

    def decode(self, data: bytes | msgspec.Raw) -> RawObject:
        """One object of a list or an event. Raises `Malformed`, for bytes that are no JSON as well."""
        try:
            return msgspec.json.decode(data, type=self.raw)
        except msgspec.ValidationError as error:
            raise self._malformed(error, msgspec.json.decode(data)) from None
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise Malformed(None, (), f"is not JSON: {error}") from None

    def convert(self, value: object) -> RawObject:
        """One object that has been read from YAML or JSON already. Raises `Malformed`."""
        try:
            return msgspec.convert(value, self.raw)
        except msgspec.ValidationError as error:
            raise self._malformed(error, value) from None

    def key(self, raw: RawObject) -> str:
        """What the object is called in a mapping: its name, or namespace/name."""
        return self.key_of(raw.metadata.namespace, raw.metadata.name)

    def key_of(self, namespace: str | None, name: str) -> str:
        return f"{namespace or 'default'}/{name}" if self.namespaced else name

    def _malformed(self, error: msgspec.ValidationError, value: object) -> Malformed:
        match = _PLACE.match(str(error))
        assert match is not None
        problem = re.sub(r"`([^`]*)`", _in_words, match["problem"])
        metadata = value.get("metadata") if isinstance(value, dict) else None
        return Malformed(
            self._key_in(metadata) if isinstance(metadata, dict) else None,
            _field_path(match["path"] or ""),
            problem[:1].lower() + problem[1:],
        )

    def _key_in(self, metadata: Mapping[Any, Any]) -> str | None:
        name, namespace = metadata.get("name"), metadata.get("namespace")
        if isinstance(name, str) and isinstance(namespace, str | None):
            return self.key_of(namespace, name)
        return None


def node_from(raw: RawNode) -> Node:
    """The Node with every valid pod CIDR, in the order of the object; the rest becomes `problems`."""
    name = raw.metadata.name
    pod_cidrs, cidr_problems = _pod_cidrs(raw.spec or RawNodeSpec())
    internal_ips, address_problems = _addresses(raw.status or RawNodeStatus(), "InternalIP")
    external_ips, more_problems = _addresses(raw.status or RawNodeStatus(), "ExternalIP")
    return Node(
        name=name,
        pod_cidrs=pod_cidrs,
        internal_ips=internal_ips,
        labels=raw.metadata.labels or {},
        problems=tuple(f"node {name}{problem}" for problem in (*cidr_problems, *address_problems, *more_problems)),
        external_ips=external_ips,
    )


def config_map_from(raw: RawConfigMap) -> ConfigMap:
    """What its keys hold is up to whoever asked for it."""
    return ConfigMap(CONFIG_MAP.key(raw), raw.data or {}, raw.metadata.creation_timestamp or "")


def config_map_in(found: ConfigMap, file: str, place: Callable[[FieldPath], tuple[int, int]]) -> ConfigMap:
    """As found in a file, with the places of its keys."""
    return replace(found, origin=Origin(file, place(("data",)), {key: place(("data", key)) for key in found.data}))


def pod_from(raw: RawPod) -> Pod:
    """The Pod with every valid address and each port that has a name; the rest becomes `problems`."""
    spec, status = raw.spec or RawPodSpec(), raw.status or RawPodStatus()
    ips, problems = _pod_ips(status)
    host_route, unclear = _host_route(raw.metadata.annotations)
    return Pod(
        namespace=raw.metadata.namespace or "default",
        name=raw.metadata.name,
        uid=raw.metadata.uid or "",
        labels=raw.metadata.labels or {},
        ips=ips,
        node=spec.node_name or "",
        host_network=bool(spec.host_network),
        ports=tuple(_named_ports(spec)),
        created=raw.metadata.creation_timestamp or "",
        terminating=raw.metadata.deletion_timestamp is not None,
        finished=status.phase in ("Succeeded", "Failed"),
        host_route=host_route,
        problems=tuple(f"pod {POD.key(raw)}{problem}" for problem in (*problems, *unclear)),
    )


def namespace_from(raw: RawNamespace) -> Namespace:
    """The label that says the name is the API server's default; a file need not have it."""
    name = raw.metadata.name
    audited = (raw.metadata.annotations or {}).get(AUDIT) == "true"
    return Namespace(name, {**(raw.metadata.labels or {}), NAME_LABEL: name}, audited)


NODE = Kind(
    "Node", "v1", "nodes", namespaced=False, raw=RawNode, to_model=node_from,
    if_absent="is node.name as `kubectl get nodes` shows it?",
)  # fmt: skip
CONFIG_MAP = Kind(
    "ConfigMap", "v1", "configmaps", namespaced=True, raw=RawConfigMap, to_model=config_map_from,
    if_absent="the default list is in use; create it, or put masquerade.config.configMap right",
    located=config_map_in,
)  # fmt: skip
POD = Kind("Pod", "v1", "pods", namespaced=True, raw=RawPod, to_model=pod_from)
NAMESPACE = Kind("Namespace", "v1", "namespaces", namespaced=False, raw=RawNamespace, to_model=namespace_from)


def _pod_cidrs(spec: RawNodeSpec) -> tuple[tuple[Prefix, ...], list[str]]:
    texts = list(_cidr_texts(spec))
    if not texts:
        remedy = "is the controller manager running with --allocate-node-cidrs?"
        return (), [f" has no spec.podCIDRs; {remedy}"]
    kept: dict[Prefix, None] = {}  # in the order of the object
    problems: list[str] = []
    families: set[str] = set()
    for field, text in texts:
        try:
            prefix = parse_prefix(text)
        except PrefixError as error:
            problems.append(f": {field}: {error}")
            continue
        family = family_of(prefix)
        if prefix in kept:
            problems.append(f": {field}: {prefix} is there twice; remove one")
            continue
        if family in families:
            # Kubernetes allows one per family, but it is the cluster's word that pods live there.
            text = f"{prefix} is a second {family} CIDR where Kubernetes allows one; it is used"
            problems.append(f": {field}: {text}")
        families.add(family)
        kept[prefix] = None
    if spec.pod_cidrs and spec.pod_cidr and spec.pod_cidr not in spec.pod_cidrs:
        problems.append(f": spec.podCIDR: {spec.pod_cidr!r} is not among spec.podCIDRs, which count")
    return tuple(kept), problems


def _cidr_texts(spec: RawNodeSpec) -> Iterator[tuple[str, str]]:
    """The field and the text of each pod CIDR. `podCIDR` is what was there before dual stack."""
    if spec.pod_cidrs:
        yield from ((f"spec.podCIDRs[{index}]", text) for index, text in enumerate(spec.pod_cidrs))
    elif spec.pod_cidr:
        yield "spec.podCIDR", spec.pod_cidr


def _addresses(status: RawNodeStatus, kind: str) -> tuple[tuple[Address, ...], list[str]]:
    kept: list[Address] = []
    problems: list[str] = []
    for index, entry in enumerate(status.addresses or ()):
        if entry.type != kind:
            continue
        try:
            address = parse_address(entry.address)
        except PrefixError as error:
            problems.append(f": status.addresses[{index}].address: {error}")
            continue
        if address not in kept:
            kept.append(address)
    return tuple(kept), problems


def _pod_ips(status: RawPodStatus) -> tuple[tuple[Address, ...], list[str]]:
    """`podIP` is the first of `podIPs`, and all there was before dual stack."""
    texts = [(f"status.podIPs[{index}].ip", entry.ip) for index, entry in enumerate(status.pod_ips or ())]
    if not texts and status.pod_ip:
        texts = [("status.podIP", status.pod_ip)]
    kept: dict[Address, None] = {}  # each once, in the order of the object
    problems: list[str] = []
    for field, text in texts:
        try:
            kept[parse_address(text)] = None
        except PrefixError as error:
            problems.append(f": {field}: {error}")
    return tuple(kept), problems


def _host_route(annotations: RawPodAnnotations | None) -> tuple[bool | None, list[str]]:
    text = annotations.host_route if annotations else None
    said = {None: None, "true": True, "false": False}
    if text in said:
        return said[text], []
    return None, [f": metadata.annotations['{HOST_ROUTE}']: found {text!r}; give \"true\" or \"false\""]


def _named_ports(spec: RawPodSpec) -> Iterator[ContainerPort]:
    """Of containers that run as long as the pod: an init container does when it is restarted always (a sidecar)."""
    sidecars = (each for each in spec.init_containers or () if each.restart_policy == "Always")
    for container in (*(spec.containers or ()), *sidecars):
        for port in container.ports or ():
            protocol = port.protocol or Protocol.TCP.name
            if port.name and protocol in Protocol.__members__:
                yield ContainerPort(port.name, Protocol[protocol], port.container_port)


def _field_path(text: str) -> FieldPath:
    """From msgspec's notation; `[...]` (some entry of a mapping) ends the path, for nobody says which."""
    steps: list[str | int] = []
    for match in _STEP.finditer(text.partition("[...]")[0]):
        steps.append(match["key"] if match["index"] is None else int(match["index"]))
    return tuple(steps)


def _in_words(match: re.Match[str]) -> str:
    return " or ".join(_WORDS.get(word, word) for word in match[1].split(" | "))
