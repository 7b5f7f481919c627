"""Finds the pods that run already when bgpd starts, in what we and the container runtime remember. A shell.

Our journal has what was attached through us. The runtime's result caches (`cache`) have every pod, those from before
we were chained too. Either may be out of date: what counts is what the kernel has. A pod of the node's own network is
in neither, and is no endpoint.

An attachment of the journal whose network namespace is no more is to be forgotten; a file of the runtime is its own
business.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bgpd.cni import protocol
from bgpd.cni.cache import RESULTS, CacheError, add_request
from bgpd.cni.frame import Frame
from bgpd.cni.interface import RefusedError, adopted, assign
from bgpd.cni.protocol import CniError
from bgpd.config.files import MissingError, UnreadableError, read_limited
from bgpd.model.attachment import Attachment, AttachmentKey
from bgpd.model.endpoint import Endpoint
from bgpd.netlink.link import PodLink
from bgpd.netlink.links import LinkError, Links, NoNamespaceError

_LONGEST = 4 << 20


@dataclass(frozen=True, slots=True)
class Running:
    """An interface of a pod that runs. `frame` None: the journal has it."""

    attachment: Attachment
    endpoint: Endpoint
    seen: PodLink
    frame: Frame | None


@dataclass(slots=True)
class Findings:
    """`ignored` says of each attachment that is remembered and not there why not; `ended`: its namespace is gone."""

    running: list[Running] = field(default_factory=list)
    ended: list[AttachmentKey] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)


def find(journal: Mapping[AttachmentKey, Attachment], caches: Path) -> Findings:
    """Takes a millisecond for each pod, so it is called in a thread. OSError: the kernel refuses."""
    findings = Findings()
    frames: dict[AttachmentKey, Frame] = {}
    claims = dict(journal)
    for frame, attachment in _cached(caches, findings):
        if attachment.key not in claims:
            claims[attachment.key], frames[attachment.key] = attachment, frame
    with Links() as links:
        for number, inside in _by_namespace(links, claims, findings).items():
            _find_in(links, number, inside, frames, findings)
    return findings


def _cached(caches: Path, findings: Findings) -> Iterator[tuple[Frame, Attachment]]:
    """What the runtime's files say."""
    for directory in RESULTS:
        for file in _files(caches / directory, findings):
            try:
                frame = add_request(read_limited(file, _LONGEST).data)
                if frame is not None:
                    yield frame, protocol.attachment(protocol.parse(frame))
            except MissingError:
                continue  # its pod has just ended
            except (UnreadableError, CacheError, CniError) as error:
                findings.ignored.append(f"{file}: {error}")


def _files(directory: Path, findings: Findings) -> Sequence[Path]:
    try:
        return sorted(directory.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return ()
    except OSError as error:
        findings.ignored.append(f"{directory}: it cannot be read: {error.strerror}")
        return ()


def _by_namespace(
    links: Links, claims: Mapping[AttachmentKey, Attachment], findings: Findings
) -> Mapping[int, list[Attachment]]:
    """By the namespace's number: a runtime and Multus may name one by two paths."""
    found: dict[int, list[Attachment]] = {}
    for key, claim in claims.items():
        try:
            found.setdefault(links.number(Path(claim.netns)), []).append(claim)
        except LinkError as error:
            findings.ignored.append(f"{key}: {error}")
            if isinstance(error, NoNamespaceError):
                findings.ended.append(key)
    return found


def _find_in(
    links: Links, number: int, claims: list[Attachment], frames: Mapping[AttachmentKey, Frame], findings: Findings
) -> None:
    seen = assign(claims, links.pods(number))
    for claim in claims:
        key = claim.key
        if key not in seen:
            findings.ignored.append(f"{key}: {claim.netns} has no interface {key.interface} that leads to this node")
            continue
        try:
            endpoint = adopted(claim, seen[key])
        except RefusedError as error:
            findings.ignored.append(f"{key}: {error}")
        else:
            findings.running.append(Running(claim, endpoint, seen[key], frames.get(key)))
