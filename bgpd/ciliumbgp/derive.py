"""Keeps the configuration in effect: bgpd.yaml's, with the sessions and advertisements that Cilium's objects ask for.

Feeds one store, which everybody who asks for the configuration reads, from five: the file's, the node's, and those of
the objects. Decides what counts while something is missing or broken; what the objects mean, `translate` does.

- An object that cannot be used counts as it last could be, and so does a peer that is refused for what it has become.
- An object that never could be used, a Secret that cannot be read and a node that is not known yet leave the store
  unsynced: then nothing that is announced or configured is taken back. A peer that was refused from the start is no
  such case: it was never there, and all the rest goes on without it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from bgpd.ciliumbgp.conditions import unwritten
from bgpd.ciliumbgp.objects import Objects, Refused
from bgpd.ciliumbgp.translate import Translation, translate
from bgpd.config import check
from bgpd.config.bgp import Bgp
from bgpd.config.ciliumbgp import AdvertisementSpec, ClusterConfigSpec, NodeConfigOverrideSpec, PeerConfigSpec
from bgpd.config.files import UnreadableError
from bgpd.config.load import Loaded, read_password
from bgpd.model.bgp import Secret
from bgpd.model.custom import Condition, Custom, Target
from bgpd.model.node import Node
from bgpd.runtime.store import Store

T = TypeVar("T")

SECRET_KEY = "password"  # noqa: S105 - as Cilium has it
REREAD_S = 10.0  # a mounted Secret is renewed without a word


@dataclass(frozen=True, slots=True)
class Feeds:
    """What the source fills, each by name."""

    cluster_configs: Store[Mapping[str, Custom[ClusterConfigSpec]]] = field(default_factory=lambda: Store({}))
    peer_configs: Store[Mapping[str, Custom[PeerConfigSpec]]] = field(default_factory=lambda: Store({}))
    advertisements: Store[Mapping[str, Custom[AdvertisementSpec]]] = field(default_factory=lambda: Store({}))
    overrides: Store[Mapping[str, Custom[NodeConfigOverrideSpec]]] = field(default_factory=lambda: Store({}))

    @property
    def stores(self) -> tuple[Store[Any], ...]:
        return self.cluster_configs, self.peer_configs, self.advertisements, self.overrides

    @property
    def newest(self) -> Objects:
        """As they are now."""
        return Objects(*(store.newest.value for store in self.stores))


class Derived:
    """`effective` is the configuration in effect; `translation` None: nothing could be derived so far.

    `unwritten` are the objects whose status does not say yet what it should.
    """

    def __init__(self, node_name: str, file: Store[Loaded], nodes: Store[Mapping[str, Node]], feeds: Feeds) -> None:
        self._node_name, self._file, self._nodes, self._feeds = node_name, file, nodes, feeds
        self._usable = Objects()
        self._labels: Mapping[str, str] | None = None
        self._unread: dict[str, str] = {}
        self.translation: Translation | None = None
        self.effective: Store[Loaded] = Store(file.newest.value)
        self.unwritten: Store[Mapping[Target, tuple[Condition, ...]]] = Store({})
        self.derive()
        inputs: tuple[Store[Any], ...] = (file, nodes, *feeds.stores)
        for store in inputs:
            store.on_change(self.derive)

    async def run(self) -> None:
        """Reads Secrets again now and then, until cancelled."""
        while True:
            await asyncio.sleep(REREAD_S)
            self.derive()

    def problems(self) -> Iterator[str]:
        """What an operator should know, the most basic first."""
        translation = self.translation
        if translation is None:
            return
        if not translation.chosen:
            yield "no CiliumBGPClusterConfig selects this node: it has no sessions"
        if translation.others:
            others = ", ".join(translation.others)
            yield f"CiliumBGPClusterConfig {others}: selects this node too, but {translation.chosen} counts"
        yield from self._unread.values()
        yield from map(str, translation.refused)

    def status(self) -> dict[str, Any]:
        """For `bgpd status`; the ClusterConfig is null while none selects this node."""
        chosen = self.translation.chosen if self.translation else ""
        return {"clusterConfig": chosen or None, "refused": [str(each) for each in self._refused]}

    @property
    def faults(self) -> int:
        """How many things are asked for that are not to be had."""
        return len(self._unread) + len(self._refused)

    @property
    def _refused(self) -> tuple[Refused, ...]:
        return self.translation.refused if self.translation else ()

    def derive(self) -> None:
        """Takes the newest of everything."""
        file, newest = self._file.newest.value, self._feeds.newest
        self._usable, whole = _usable(self._usable, newest)
        node = self._nodes.newest.value.get(self._node_name)
        if node is not None:
            self._labels = node.labels  # those of a node that is gone keep its sessions, which carry the withdrawals
        if self._labels is None or not all(store.newest.synced for store in self._feeds.stores):
            if self.translation is None:
                self.effective.publish(file, synced=False)
            return
        self.unwritten.publish(unwritten(newest))
        self.translation = translate(file.config.bgp, self._usable, self._node_name, self._labels)
        before = self.effective.newest.value
        passwords = self._passwords(file, self.translation)
        without = self._unread.keys() - passwords.keys()
        bgp, kept = _with_last_good(before.config.bgp, self.translation, without)
        passwords |= {name: before.passwords[name] for name in kept if name in before.passwords}
        config = file.config.model_copy(update={"bgp": bgp})
        known = whole and not without
        self.effective.publish(replace(file, config=config, passwords=passwords), synced=known)

    def _passwords(self, file: Loaded, translation: Translation) -> dict[str, Secret]:
        """By peer; one that cannot be read any more as it last was. Those that cannot are noted."""
        before = self.effective.newest.value.passwords
        passwords: dict[str, Secret] = {}
        self._unread = {}
        directory = file.config.bgp.auth_secrets
        for peer, name in translation.secrets.items():
            try:
                passwords[peer] = _password(directory, name)
            except UnreadableError as error:
                self._unread[peer] = f"peer {peer}: authSecretRef {name}: {error}"
                if peer in before:
                    passwords[peer] = before[peer]
        return passwords


def _password(directory: Path | None, name: str) -> Secret:
    if directory is None:
        raise UnreadableError("bgp.authSecrets is not given; say there in which directory the Secrets are")
    path = directory / name / SECRET_KEY
    try:
        return read_password(path)
    except UnreadableError as error:
        raise UnreadableError(f"{path}: {error}") from None


def _with_last_good(before: Bgp, translation: Translation, without: Set[str]) -> tuple[Bgp, frozenset[str]]:
    """What the objects ask for; of a peer that cannot be had as it is now, what it was before. And those peers."""
    bgp = translation.bgp
    sound = tuple(peer for peer in bgp.peers if peer.name not in without)
    taken = {place for peer in sound for place in check.places(peer)}
    kept = tuple(it for it in before.peers if it.name in translation.failed and taken.isdisjoint(check.places(it)))
    names = frozenset(peer.name for peer in kept)
    entries = tuple(entry for entry in before.advertisements if names & set(entry.peers or ()))
    update = {"peers": (*sound, *kept), "advertisements": (*bgp.advertisements, *entries)}
    return bgp.model_copy(update=update), names


def _usable(before: Objects, newest: Objects) -> tuple[Objects, bool]:
    """Each object as it is, or as it last could be used, and whether none is missing that never could."""
    cluster_configs, first = _standing(before.cluster_configs, newest.cluster_configs)
    peer_configs, second = _standing(before.peer_configs, newest.peer_configs)
    advertisements, third = _standing(before.advertisements, newest.advertisements)
    overrides, fourth = _standing(before.overrides, newest.overrides)
    return Objects(cluster_configs, peer_configs, advertisements, overrides), first and second and third and fourth


def _standing(
    before: Mapping[str, Custom[T]], newest: Mapping[str, Custom[T]]
) -> tuple[Mapping[str, Custom[T]], bool]:
    kept = {name: each if each.spec is not None else before.get(name, each) for name, each in newest.items()}
    return kept, all(each.spec is not None for each in kept.values())
