"""The previous result of a chain: what it says of the pod's interface, and how it reads in each version. Pure.

Only what we use is looked at, and everything else is passed on as it came: a plugin of a chain must not lose what it
does not know (CNI specification, section 2, "prevResult"). The versions differ in few keys:

    before 1.0.0  every address names its family ("version": "4")
    from 1.1.0    interfaces have mtu, socketPath, pciID; routes have mtu, advmss, priority, table, scope
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from bgpd.model.prefix import Address, PrefixError, parse_address

Json: TypeAlias = dict[str, Any]

_NEW_IN_1_1 = {
    "interfaces": {"mtu", "socketPath", "pciID"},
    "routes": {"mtu", "advmss", "priority", "table", "scope"},
}


class ResultError(ValueError):
    """This is no result; the text names the place in it."""


@dataclass(frozen=True, slots=True)
class PodInterface:
    """The pod's side of the attachment, as the chain so far tells it. `mac` is empty when it does not."""

    mac: str
    addresses: tuple[Address, ...]
    host_interfaces: tuple[str, ...]


def pod_interface(result: Mapping[str, Any], name: str, netns: str) -> PodInterface:
    """The interface `name` of the pod whose network namespace is at `netns`, and the addresses that are its own.

    Some plugins list no interface, or not to which one an address belongs: what is not said belongs to the pod's.
    """
    interfaces = _objects(result, "interfaces")
    index = _index(interfaces, name, netns)
    mine = {None} if index is None else {None, index}
    addresses = tuple(
        _address(ip, place) for place, ip in enumerate(_objects(result, "ips")) if _belongs(ip, place) in mine
    )
    mac = _text(interfaces[index], "mac", f"interfaces[{index}]") if index is not None else ""
    names = [_text(each, "name", f"interfaces[{place}]") for place, each in enumerate(interfaces)]
    hosts = tuple(name for name, each in zip(names, interfaces, strict=True) if name and not each.get("sandbox"))
    return PodInterface(mac.lower(), addresses, hosts)


def converted(result: Mapping[str, Any], version: str) -> Json:
    """The result as `version` writes it; the same as it came, when it came in that version."""
    if result.get("cniVersion") == version:
        return dict(result)
    wanted = release(version)
    converted = dict(result) | {"cniVersion": version}
    if "ips" in result:
        converted["ips"] = [_ip(ip, wanted) for ip in _objects(result, "ips")]
    if wanted < (1, 1, 0):
        for key, new in _NEW_IN_1_1.items():
            if key in result:
                converted[key] = [
                    {name: value for name, value in each.items() if name not in new} for each in _objects(result, key)
                ]
    return converted


def release(version: str) -> tuple[int, ...]:
    """A version that can be compared."""
    return tuple(int(part) for part in version.split("."))


def _ip(ip: Json, wanted: tuple[int, ...]) -> Json:
    if wanted >= (1, 0, 0):
        return {key: value for key, value in ip.items() if key != "version"}
    return ip | {"version": "6" if ":" in str(ip.get("address")) else "4"}


def _index(interfaces: list[Json], name: str, netns: str) -> int | None:
    """Which of them is the pod's. A runtime and a plugin may name one namespace by two paths."""
    found = [place for place, each in enumerate(interfaces) if each.get("name") == name and each.get("sandbox")]
    exact = [place for place in found if interfaces[place]["sandbox"] == netns]
    return next(iter(exact or found), None)


def _belongs(ip: Json, place: int) -> int | None:
    index = ip.get("interface")
    if index is None or (type(index) is int and index >= 0):
        return index
    raise ResultError(f"ips[{place}].interface: {index!r} is no index into interfaces")


def _address(ip: Json, place: int) -> Address:
    text = _text(ip, "address", f"ips[{place}]")
    try:
        return parse_address(text.partition("/")[0])
    except PrefixError as error:
        raise ResultError(f"ips[{place}].address: {error}") from None


def _objects(result: Mapping[str, Any], key: str) -> list[Json]:
    """The list of objects at `key`; a key that is missing or null has none."""
    value = result.get(key)
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
        raise ResultError(f"{key}: must be a list of objects")
    return value


def _text(value: Mapping[str, Any], key: str, place: str) -> str:
    found = value.get(key, "")
    if isinstance(found, str):
        return found
    raise ResultError(f"{place}.{key}: must be a text")
