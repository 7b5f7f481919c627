"""Reads what a container runtime remembers of its attachments: the result cache of libcni ("cniCacheV1"). Pure.

libcni, which containerd, CRI-O and Multus run plugins with, keeps one file per attachment from ADD to DEL:

    DIRECTORY/results/NETWORK-CONTAINER-INTERFACE
    {"kind": "cniCacheV1", "containerId", "ifName", "networkName", "netns", "cniArgs": [["NAME", "value"]],
     "config": the network configuration in base64, "capabilityArgs", "result": that of the chain's last plugin}

`netns` is there from libcni 1.2 on; before, the result says it. Read is only what an ADD of ours would have been
told, and it comes out as that very request: what it means is `protocol`'s. Files without "kind" are of libcni before
0.8 and tell nothing but the result.
"""

from __future__ import annotations

import base64
import json
from typing import Any

from bgpd.cni.frame import Frame
from bgpd.cni.protocol import PLUGIN_TYPE, Verb

RESULTS = ("results", "multus/results")  # below the directory of caches; Multus keeps those of its delegates apart
_KIND = "cniCacheV1"
_LOOPBACK = "lo"


class CacheError(ValueError):
    """No attachment can be made of this file; the text says why."""


def add_request(data: bytes) -> Frame | None:
    """The ADD that we would have been asked for. None: a pod's loopback, which leads nowhere."""
    value = _object(data)
    if value.get("kind") != _KIND:
        raise CacheError(f'it is not of the kind "{_KIND}"')
    interface, result = _text(value, "ifName"), value.get("result")
    if interface == _LOOPBACK:
        return None
    if not isinstance(result, dict):
        raise CacheError("it has no result")
    netns = _text(value, "netns") or _sandbox(result, interface)
    if not netns:
        raise CacheError(f"it does not say in which network namespace {interface} is")
    environment = {
        "CNI_COMMAND": Verb.ADD.value,
        "CNI_CONTAINERID": _text(value, "containerId"),
        "CNI_NETNS": netns,
        "CNI_IFNAME": interface,
        "CNI_ARGS": _arguments(value.get("cniArgs")),
    }
    configuration = {
        "cniVersion": result.get("cniVersion"),
        "name": _text(value, "networkName"),
        "type": PLUGIN_TYPE,
        "prevResult": result,
    }
    variables = "".join(f"{name}={each}\0" for name, each in environment.items())
    return Frame(variables.encode(), json.dumps(configuration).encode())


def configuration(data: bytes) -> bytes:
    """The network configuration that the attachment was made with; nothing where the file has none."""
    try:
        return base64.b64decode(json.loads(data)["config"], validate=True)
    except (ValueError, RecursionError, TypeError, KeyError):
        return b""


def _object(data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        raise CacheError("it is no JSON") from None
    if not isinstance(value, dict):
        raise CacheError("it is no JSON object")
    return value


def _text(value: dict[str, Any], key: str) -> str:
    found = value.get(key, "")
    if isinstance(found, str) and "\0" not in found:
        return found
    raise CacheError(f"{key} is no text")


def _sandbox(result: dict[str, Any], interface: str) -> str:
    interfaces = result.get("interfaces")
    for each in interfaces if isinstance(interfaces, list) else []:
        if isinstance(each, dict) and each.get("name") == interface and each.get("sandbox"):
            return _text(each, "sandbox")
    return ""


def _arguments(pairs: object) -> str:
    """As CNI_ARGS. What cannot be written there is left out: it names no pod."""
    if not isinstance(pairs, list):
        return ""
    texts = [pair for pair in pairs if isinstance(pair, list) and len(pair) == 2 and all(map(_is_plain, pair))]
    return ";".join("=".join(pair) for pair in texts)


def _is_plain(value: object) -> bool:
    return isinstance(value, str) and not {";", "=", "\0"} & set(value)
