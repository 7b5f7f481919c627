"""Understands what a container runtime asks of the plugin, and words the answers. Pure.

The specification is https://www.cni.dev/docs/spec/ in versions 0.3.1, 0.4.0, 1.0.0 and 1.1.0. What is asked for
is parsed whole or refused with one of its error codes and one sentence. VERSION is answered by the plugin itself.
What is done about a request is `server`'s.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import IntEnum, StrEnum
from typing import Any

from bgpd.cni.frame import Frame
from bgpd.cni.result import Json, ResultError, converted, pod_interface, release
from bgpd.model.attachment import Attachment, AttachmentKey, ChainingMode, PodName

VERSIONS = ("0.3.1", "0.4.0", "1.0.0", "1.1.0")
NEWEST = VERSIONS[-1]
PLUGIN_TYPE = "bgpd-cni"
DEADLINE_S = 5
LONGEST_DEADLINE_S = 600

_IDENTIFIER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]*")
_INTERFACE = re.compile(r"(?!\.{1,2}$)[^/:\s\0]{1,15}")  # IFNAMSIZ, and what the kernel takes for a name


class Verb(StrEnum):
    """What the daemon is asked for."""

    ADD = "ADD"
    DEL = "DEL"
    CHECK = "CHECK"
    GC = "GC"
    STATUS = "STATUS"


class Code(IntEnum):
    """The specification's error codes; from 100 on they are ours."""

    INCOMPATIBLE_VERSION = 1
    UNSUPPORTED_FIELD = 2
    INVALID_ENVIRONMENT = 4
    DECODE = 6
    INVALID_CONFIGURATION = 7
    TRY_AGAIN = 11
    NOT_AVAILABLE = 50
    REFUSED = 100
    """The pod's interface is none whose traffic can be judged here; trying again does not help."""
    DIFFERS = 101
    """CHECK: what is there is not what the ADD made."""
    INTERNAL = 102
    """A mistake of ours; the daemon's log has it."""


_SINCE = {Verb.ADD: "0.3.1", Verb.DEL: "0.3.1", Verb.CHECK: "0.4.0", Verb.GC: "1.1.0", Verb.STATUS: "1.1.0"}
_OF_A_CONTAINER = (Verb.ADD, Verb.DEL, Verb.CHECK)


class CniError(Exception):
    """The request fails with `code`; the text is for whoever reads the pod's events."""

    def __init__(self, code: Code, text: str) -> None:
        super().__init__(text)
        self.code = code


@dataclass(frozen=True, slots=True)
class Request:
    """One request. `key` is None for GC and STATUS, `previous` when the runtime gave none, `netns` "" likewise.

    `valid` are the attachments of this network that GC leaves alone.
    """

    verb: Verb
    version: str
    network: str
    mode: ChainingMode
    deadline_s: int
    key: AttachmentKey | None = None
    netns: str = ""
    pod: PodName | None = None
    previous: Json | None = None
    valid: frozenset[AttachmentKey] = frozenset()


def parse(frame: Frame) -> Request:
    """CniError: it cannot be met as it stands."""
    variables = _variables(frame.environment)
    verb = _verb(variables)
    configuration = _configuration(frame.configuration)
    version = _version(configuration, verb)
    network = _network(configuration)
    request = Request(verb, version, network, _mode(configuration, network), _deadline_s(configuration))
    if verb is Verb.GC:
        return replace(request, valid=_valid(configuration, network))
    if verb not in _OF_A_CONTAINER:
        return request
    _check_variables(variables, verb)
    return replace(
        request,
        key=AttachmentKey(network, variables["CNI_CONTAINERID"], variables["CNI_IFNAME"]),
        netns=variables.get("CNI_NETNS", ""),
        pod=_pod(_arguments(variables.get("CNI_ARGS", ""), verb)),
        previous=_previous(configuration, verb),
    )


def attachment(request: Request) -> Attachment:
    """What an ADD is about. CniError: its previous result is none."""
    assert request.key is not None and request.previous is not None
    try:
        pod = pod_interface(request.previous, request.key.interface, request.netns)
    except ResultError as error:
        raise CniError(Code.DECODE, f"prevResult.{error}") from None
    if not pod.addresses:
        name = request.key.interface
        raise _invalid(f"prevResult has no address for {name}; put {PLUGIN_TYPE} behind the plugin that gives it one")
    return Attachment(
        request.key, request.netns, request.pod, request.mode, pod.mac, pod.addresses, pod.host_interfaces
    )


def result(request: Request) -> bytes:
    """What an ADD prints: the previous result in the version of the configuration."""
    assert request.previous is not None
    try:
        return json.dumps(converted(request.previous, request.version)).encode()
    except ResultError as error:
        raise CniError(Code.DECODE, f"prevResult.{error}") from None


def error(version: str, problem: CniError) -> bytes:
    """What a request that failed prints. `version` "": the configuration's could not be read."""
    value = {"cniVersion": version or NEWEST, "code": int(problem.code), "msg": str(problem)}
    return json.dumps(value).encode()


def version_of(configuration: bytes) -> str:
    """For an error about a request that cannot be parsed: its version if it has one, else ""."""
    try:
        version = json.loads(configuration)["cniVersion"]
    except (ValueError, RecursionError, TypeError, LookupError):
        return ""
    return version if version in VERSIONS else ""


def differences(then: Attachment, now: Attachment) -> tuple[str, ...]:
    """What a CHECK's previous result says otherwise than the ADD's did."""
    pairs = (
        ("network namespace", then.netns, now.netns),
        ("MAC address", then.mac, now.mac),
        ("addresses", _sorted(then), _sorted(now)),
    )
    return tuple(f"{what}: was {old}, is {new}" for what, old, new in pairs if old != new)


def _sorted(each: Attachment) -> str:
    return ", ".join(sorted(str(address) for address in each.addresses))


# --- the environment --------------------------------------------------------------------------------------


def _variables(environment: bytes) -> Mapping[str, str]:
    texts = environment.decode("utf-8", "surrogateescape").split("\0")
    return dict(text.split("=", 1) for text in texts if "=" in text)


def _verb(variables: Mapping[str, str]) -> Verb:
    command = variables.get("CNI_COMMAND", "")
    try:
        return Verb(command)
    except ValueError:
        known = ", ".join(Verb)
        raise CniError(Code.INVALID_ENVIRONMENT, f"CNI_COMMAND is {command!r}; it must be one of {known}") from None


def _check_variables(variables: Mapping[str, str], verb: Verb) -> None:
    """All that is wrong with them in one sentence. DEL does without a network namespace: it may be gone."""
    faults = []
    if not _IDENTIFIER.fullmatch(variables.get("CNI_CONTAINERID", "")):
        faults.append("CNI_CONTAINERID must be letters, digits, '_', '.' and '-', and start with a letter or digit")
    if not _INTERFACE.fullmatch(variables.get("CNI_IFNAME", "")):
        faults.append("CNI_IFNAME must be the name of an interface, of at most 15 characters")
    if verb is not Verb.DEL and not variables.get("CNI_NETNS", "").startswith("/"):
        faults.append("CNI_NETNS must be the absolute path of a network namespace")
    if faults:
        raise CniError(Code.INVALID_ENVIRONMENT, "; ".join(faults))


def _arguments(text: str, verb: Verb) -> Mapping[str, str]:
    """CNI_ARGS, as "KEY=value;KEY=value". A DEL takes what it can get."""
    pairs = [pair.split("=", 1) for pair in text.split(";") if pair]
    broken = [pair[0] for pair in pairs if len(pair) != 2]
    if broken and verb is not Verb.DEL:
        raise CniError(Code.INVALID_ENVIRONMENT, f"CNI_ARGS has {broken[0]!r} where KEY=value is expected")
    return {pair[0]: pair[1] for pair in pairs if len(pair) == 2}


def _pod(arguments: Mapping[str, str]) -> PodName | None:
    namespace, name = arguments.get("K8S_POD_NAMESPACE", ""), arguments.get("K8S_POD_NAME", "")
    return PodName(namespace, name, arguments.get("K8S_POD_UID", "")) if namespace and name else None


# --- the configuration ------------------------------------------------------------------------------------


def _configuration(data: bytes) -> Json:
    try:
        value = json.loads(data)
    except UnicodeDecodeError:
        raise CniError(Code.DECODE, "the network configuration on stdin is not UTF-8") from None
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        text = f"the network configuration on stdin is no JSON at {place}: {error.msg}"
        raise CniError(Code.DECODE, text) from None
    except RecursionError:
        raise CniError(Code.DECODE, "the network configuration on stdin is nested too deeply") from None
    if not isinstance(value, dict):
        raise CniError(Code.DECODE, "the network configuration on stdin is no JSON object")
    return value


def _version(configuration: Json, verb: Verb) -> str:
    version = configuration.get("cniVersion")
    if version not in VERSIONS:
        found = f"is {version!r}" if version else "is missing"
        raise CniError(Code.INCOMPATIBLE_VERSION, f"cniVersion {found}; give one of {', '.join(VERSIONS)}")
    assert isinstance(version, str)
    if release(version) < release(_SINCE[verb]):
        raise CniError(Code.INCOMPATIBLE_VERSION, f"cniVersion {version} has no {verb}; it came with {_SINCE[verb]}")
    return version


def _network(configuration: Json) -> str:
    name = configuration.get("name")
    if isinstance(name, str) and _IDENTIFIER.fullmatch(name):
        return name
    raise _invalid(f"name: found {name!r}; give letters, digits, '_', '.' and '-', first a letter or digit")


def _mode(configuration: Json, network: str) -> ChainingMode:
    given = configuration.get("chaining-mode", ChainingMode.AUTO)
    try:
        mode = ChainingMode(given)
    except ValueError:
        known = ", ".join(ChainingMode)
        text = f"chaining-mode: {given!r} is not supported; give one of {known}, or leave it out"
        raise CniError(Code.UNSUPPORTED_FIELD, text) from None
    return ChainingMode(network) if mode is ChainingMode.AUTO and network in list(ChainingMode) else mode


def _deadline_s(configuration: Json) -> int:
    value = configuration.get("deadline-seconds", DEADLINE_S)
    if type(value) is int and 1 <= value <= LONGEST_DEADLINE_S:
        return value
    raise _invalid(f"deadline-seconds: found {value!r}; give a whole number from 1 to {LONGEST_DEADLINE_S}")


def _previous(configuration: Json, verb: Verb) -> Json | None:
    """A DEL does without: the runtime may have lost it."""
    value = configuration.get("prevResult")
    if isinstance(value, dict):
        return value
    if verb is Verb.DEL:
        return None
    if value is None:
        raise _invalid(f"there is no prevResult; put {PLUGIN_TYPE} behind the main plugin, in the list 'plugins'")
    raise CniError(Code.DECODE, "prevResult is no JSON object")


def _valid(configuration: Json, network: str) -> frozenset[AttachmentKey]:
    """Without the list nothing would be valid, and every attachment removed: it must be there."""
    # the second name was in drafts of the specification, and runtimes send both
    for name in ("cni.dev/valid-attachments", "cni.dev/attachments"):
        if name in configuration:
            return frozenset(_valid_key(each, name, network) for each in _list(configuration[name], name))
    raise _invalid("cni.dev/valid-attachments is missing, and without it GC would remove every attachment")


def _list(value: Any, name: str) -> list[Any]:
    if isinstance(value, list):
        return value
    raise _invalid(f"{name}: must be a list")


def _valid_key(each: Any, name: str, network: str) -> AttachmentKey:
    container, interface = (each.get("containerID"), each.get("ifname")) if isinstance(each, dict) else (None, None)
    if isinstance(container, str) and isinstance(interface, str):
        return AttachmentKey(network, container, interface)
    raise _invalid(f"{name}: {each!r} must have the texts containerID and ifname")


def _invalid(text: str) -> CniError:
    return CniError(Code.INVALID_CONFIGURATION, text)
