"""From the bytes of a configuration file to a `Config`, or to every fault with line, column and key. Pure.

Four readings of one file, whose faults are all collected: YAML (`document`), sections and keys (`schema`),
single values (`field`), contradictions (`check`). The wording of pydantic never reaches an operator.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar, get_args

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from bgpd.config import check, document
from bgpd.config.bgp import Advertisement, Peer, PeersFrom, spelled_out
from bgpd.config.defaults import MAX_BYTES
from bgpd.config.document import Document, Limits, Path, spell
from bgpd.config.field import asn_of, did_you_mean
from bgpd.config.scalar import shown
from bgpd.config.schema import Config, Node
from bgpd.config.section import Section
from bgpd.model.fault import Fault, FaultsError

S = TypeVar("S", bound=Section)

LIMITS = Limits(bytes=MAX_BYTES, nodes=100_000)
_MOST_FAULTS = 100  # of one kind; nobody reads on, and each costs a search for what may have been meant


@dataclass(frozen=True, slots=True)
class Parsed:
    """A configuration without faults, and what in it an operator should look at again."""

    config: Config
    warnings: tuple[Fault, ...]


@dataclass(frozen=True, slots=True)
class Examined:
    """All that a file says. `config` is None when there are faults.

    `peers` are those that are valid by themselves, by their position, whatever the rest of the file is like.
    `document` is None when there is no mapping to speak of.
    """

    file: str
    document: Document | None
    config: Config | None
    peers: dict[int, Peer]
    faults: tuple[Fault, ...]
    warnings: tuple[Fault, ...]

    def fault(self, path: Path, problem: str) -> Fault:
        """A fault, or a warning, with its place in this file."""
        line, column = self.document.place(path) if self.document else (0, 0)
        return Fault(self.file, line, column, spell(path), problem)


def parse(data: bytes, file: str, node_name: str = "") -> Parsed:
    """FaultsError holds everything wrong with `data`, in the order of its lines.

    `file` is how the faults name it. `node_name` is the node's name where the file gives none.
    """
    examined = examine(data, file, node_name)
    if examined.config is None:
        raise FaultsError(examined.faults)
    return Parsed(examined.config, examined.warnings)


def examine(data: bytes, file: str, node_name: str = "") -> Examined:
    """As `parse`, for a caller that has faults of its own to add; it raises nothing."""
    documents = document.parse(data, file, LIMITS)
    only, faults = _only_document(documents, file)
    if only is None or not isinstance(only.value, dict):
        return Examined(file, None, None, {}, faults, ())
    value = _spelled_out(only.value)
    sound = _sound(value)
    examined = Examined(file, only, None, dict(sound.peers), faults, ())
    config: Config | None = None
    problems = list(islice(check.contradictions(sound), _MOST_FAULTS))
    try:
        config = Config.model_validate(value)
    except ValidationError as error:
        problems += problems_of(error, Config)
    faults = tuple(sorted((*faults, *(examined.fault(*problem) for problem in problems))))
    if config is None or faults:
        return Examined(file, only, None, dict(sound.peers), faults, ())
    if not config.node.name:
        config = config.model_copy(update={"node": Node.model_construct(name=node_name)})
    noted = (
        *check.warnings(config.bgp),
        *check.masquerade_warnings(config.masquerade),
        *check.cni_warnings(config),
        *check.virtual_server_warnings(config),
    )
    warnings = tuple(sorted(examined.fault(*problem) for problem in noted))
    return Examined(file, only, config, dict(sound.peers), (), warnings)


def _spelled_out(value: dict[str, Any]) -> dict[str, Any]:
    bgp = value.get("bgp")
    return value | {"bgp": spelled_out(bgp)} if isinstance(bgp, dict) else value


def _only_document(documents: document.Documents, file: str) -> tuple[Document | None, tuple[Fault, ...]]:
    """The one document of the file if it is a mapping, and all faults so far."""
    if len(documents.values) > 1:
        line, column = documents.values[1].place(())
        extra = Fault(file, line, column, "", "a second document; one file holds one configuration")
        return None, tuple(sorted((*documents.faults, extra)))
    only = documents.values[0] if documents.values else None
    if only is not None and isinstance(only.value, dict):
        return only, documents.faults
    if documents.faults:
        return None, documents.faults
    line, column = only.place(()) if only is not None and only.value is not None else (0, 0)
    found = "the file is empty" if line == 0 else f"found {shown(only.value if only else None)}"
    return None, (Fault(file, line, column, "", f"{found}; give a mapping with at least 'source' and 'bgp'"),)


def _sound(value: dict[str, Any]) -> check.Sound:
    bgp = value.get("bgp")
    bgp = bgp if isinstance(bgp, dict) else {}
    port = bgp.get("listenPort")
    raw = [entry for entry in _listed(bgp.get("peers")) if isinstance(entry, dict)]
    return check.Sound(
        peers=dict(_valid(Peer, bgp.get("peers"))),
        peer_names=frozenset(name for entry in raw if isinstance(name := entry.get("name"), str)),
        advertisements=dict(_valid(Advertisement, bgp.get("advertisements"))),
        listen_port=port if type(port) is int else None,
        local_asn=_asn(bgp.get("localASN")),
        given=frozenset(bgp),
        peers_from=PeersFrom.CILIUM if bgp.get("peersFrom") == PeersFrom.CILIUM else PeersFrom.FILE,
    )


def _asn(value: object) -> int:
    try:
        return asn_of(value)
    except ValueError:
        return 0


def _valid(section: type[S], value: object) -> Iterator[tuple[int, S]]:
    for index, entry in enumerate(_listed(value)):
        try:
            yield index, section.model_validate(entry)
        except ValidationError:
            continue  # the validation of the whole file names it


def _listed(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def problems_of(error: ValidationError, root: type[Section]) -> list[check.Problem]:
    """What pydantic refused of a `root`, in our words."""
    return [_problem(details, root) for details in error.errors(include_url=False)[:_MOST_FAULTS]]


def _problem(error: ErrorDetails, root: type[Section]) -> check.Problem:
    path: Path = error["loc"]
    found = shown(error["input"])
    match error["type"]:
        case "value_error":
            return path, str(error["ctx"]["error"])
        case "missing":
            return path, check.MISSING
        case "extra_forbidden":
            return path, _unknown_key(path, root)
        case "model_type" | "dict_type":
            return path, f"found {found}; give a mapping"
        case "tuple_type":
            return path, f"found {found}; give a list"
        case "string_type":
            return path, f"found {found}; give text, in quotes if it looks like something else"
        case _:
            return path, f"found {found}; {error['msg']}"


def _unknown_key(path: Path, root: type[Section]) -> str:
    known = _keys_at(path[:-1], root)
    hint = did_you_mean(path[-1], known)
    return f"unknown key {shown(path[-1])}{hint or '; known here are ' + ', '.join(known)}"


def _keys_at(path: Path, root: type[Section]) -> list[str]:
    """The keys that the section at `path` may have."""
    section = root
    for step in path:
        fields = {field.alias: field.annotation for field in section.model_fields.values()}
        if isinstance(step, str):
            section = _section_in(fields[step]) or section
    return [str(field.alias) for field in section.model_fields.values()]


def _section_in(annotation: Any) -> type[Section] | None:
    """The section that an annotation like `tuple[Peer, ...] | None` is about."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    return next((found for part in get_args(annotation) if (found := _section_in(part))), None)
