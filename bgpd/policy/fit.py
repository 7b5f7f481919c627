"""Decides which pods of this node are held back while the rules of all do not fit into the kernel's maps. Pure.

`compile` knows no limits; this asks it, counts, and asks again with pods held until everything fits. A pod is held as
a whole, on the rules that it was last given or closed, whichever `Overflow` says; the policies that did not fit are
its `Misfit`s. Whoever has not changed is left alone: what is to blame is what came, the most demanding first, or what
is not in the kernel yet when the daemon starts. A pod that never had rules here is closed.

The cluster may outgrow a map while no policy changes. Rules that are kept then let in whom they let in before, as far
as there is room, for what has no entry is denied: only pods of this node must have one, or they would be open.

Room may come by itself: whoever asks must ask again, by `advance` with `again`, which is a whole compilation.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, NamedTuple

from bgpd.datapath.layout import Peer
from bgpd.model.policy import NetworkPolicy, Overflow, Snapshot
from bgpd.policy.compile import CLOSED, NO_HOLDS, Compiler, Hold
from bgpd.policy.entries import PLACES, Contents, asked_by, entries_in, largest, needed_in, place_of
from bgpd.policy.resolve import prefixes_of

LOCAL_SHARE = 128  # one in so many entries of policy_peers is left for pods of this node: 1,024, and 110 is usual
CUTTABLE = ("policy_peers", "policy_rules", "policy_ports", "policy_ranges")  # a prefix less may let somebody in
REMEDIES = {
    "peers": "let it select fewer pods as peers, or name their addresses by an ipBlock",
    "cidrs": "let it have fewer ipBlocks and exceptions, or wider ones",
    "rules": "let it tell less apart: fewer rules, or the same peers and ports in more of them",
    "ports": "let it name fewer single ports, or ranges of them",
    "ranges": "let it have fewer ranges of ports, or whole protocols; one from 1024 to 2047 takes one entry, from "
    "1 to 65534 thirty, and again for each rule",
}


class Fate(StrEnum):
    """What became of a pod whose rules do not fit."""

    KEPT = "keeps its last good rules"
    CLOSED = "is closed"
    CUT = "keeps its rules for whom there is room"


@dataclass(frozen=True, slots=True)
class Misfit:
    """A policy that is not in force as it is, and the pods of this node that it selects.

    In force it would bring `entries` into the map `place`, which then needed `needed` of its `capacity`, with what is
    there while it is written. `largest` has the policies that ask for most, it among them.
    """

    policy: str
    uid: str
    place: str
    needed: int
    capacity: int
    entries: int
    largest: str
    pods: Mapping[str, Fate]

    @property
    def reason(self) -> str:
        """For the operator of the node."""
        return f"{self.notice}. Most entries are of {self.largest}"

    @property
    def notice(self) -> str:
        """For who wrote the policy, who may know nothing of other namespaces."""
        fates = ", ".join(f"{pod} {fate}" for pod, fate in sorted(self.pods.items())[:3])
        more = f" and {len(self.pods) - 3} more pods likewise" if len(self.pods) > 3 else ""
        return (
            f"NetworkPolicy {self.policy} does not fit: with its {self.entries:,} new entries the map {self.place} "
            f"would need {self.needed:,}, and it holds {self.capacity:,}; {fates}{more}. "
            f"{REMEDIES[PLACES[self.place]].capitalize()}"
        )


class Shortage(NamedTuple):
    """The map `place` would need so many entries at once."""

    place: str
    needed: int
    capacity: int


class _Good(NamedTuple):
    """What a pod was last judged by that fitted; `uid` tells it from another pod of its name."""

    uid: str
    policies: tuple[NetworkPolicy, ...]


class Fitting:
    """Ask it with each snapshot in turn, as the compiler. `capacity` is by map."""

    def __init__(self, capacity: Mapping[str, int]) -> None:
        self._capacity = capacity
        self._compiler = Compiler()
        self._last: tuple[Snapshot, Mapping[str, Hold]] | None = None
        self._good: dict[str, _Good] = {}
        self._held = NO_HOLDS
        self._cuts: frozenset[str] = frozenset()  # maps in which not everybody has an entry
        self._full: Mapping[str, int] = {}  # how many entries the maps had in which something did not fit
        self.misfits: tuple[Misfit, ...] = ()

    def has_room_come(self, have: Contents) -> bool:
        """Whether a map in which something did not fit has fewer entries than it had then."""
        return any(len(entries_in(have, place)) < count for place, count in self._full.items())

    def owner(self, address: bytes) -> str | None:
        """The pod that has the address in the last snapshot, as struct policy_address has it; None: none has."""
        return self._compiler.owner(address)

    def advance(
        self, snapshot: Snapshot, have: Contents, overflow: Overflow, *, again: bool = True
    ) -> tuple[Contents, ...]:
        """The stages that lead to what is to be programmed. `have` is what the kernel has.

        Without `again` whoever is held stays held.
        """
        held = NO_HOLDS if again else self._still(snapshot)
        cuts = frozenset[str]() if again else self._cuts
        stages = self._advance(snapshot, have, held, cuts)
        if shortage(have, stages[-1], self._capacity) is None:
            if again:
                self.misfits, self._full = (), {}
        else:
            choice = _Choice(self._compiler, self._capacity, snapshot, have, overflow, self._good)
            held, cuts, self.misfits = choice.made()
            self._full = {misfit.place: len(entries_in(have, misfit.place)) for misfit in self.misfits}
            self._compiler = Compiler()  # numbers do not depend on what it saw: it is where it was
            if self._last is not None:
                self._compiler.advance(*self._last)
            stages = self._advance(snapshot, have, held, cuts)
        self._held, self._cuts, self._last = held, cuts, (snapshot, held)
        self._good = dict(self._remembered(snapshot, held))
        return stages

    def _advance(
        self, snapshot: Snapshot, have: Contents, held: Mapping[str, Hold], cuts: Collection[str]
    ) -> tuple[Contents, ...]:
        stages = self._compiler.advance(snapshot, held)
        return (cut(stages[-1], have, cuts, self._capacity),) if cuts else stages

    def _still(self, snapshot: Snapshot) -> Mapping[str, Hold]:
        """The holds of pods that are still the ones that were held."""
        return {
            key: hold
            for key, hold in self._held.items()
            if key in snapshot.local
            and (pod := snapshot.pods.get(key)) is not None
            and (hold is CLOSED or pod.uid == self._good[key].uid)
        }

    def _remembered(self, snapshot: Snapshot, held: Mapping[str, Hold]) -> Iterator[tuple[str, _Good]]:
        for key in snapshot.local:
            pod = snapshot.pods.get(key)
            if pod is not None and key not in held:
                yield key, _Good(pod.uid, self._compiler.policies_of(key))
            elif key in held and key in self._good:
                yield key, self._good[key]


class _Choice:
    """Whom to hold, for one snapshot. `probe` is a compiler that nobody needs any more."""

    def __init__(
        self,
        probe: Compiler,
        capacity: Mapping[str, int],
        snapshot: Snapshot,
        have: Contents,
        overflow: Overflow,
        good: Mapping[str, _Good],
    ) -> None:
        self._probe, self._capacity, self._snapshot, self._have = probe, capacity, snapshot, have
        self._overflow, self._good = overflow, good
        self._held: dict[str, Hold] = {}
        self._cuts: set[str] = set()
        self._misfits: dict[str, Misfit] = {}
        self._want = probe.advance(snapshot)[-1]
        self._changed = dict(self._newcomers())

    def made(self) -> tuple[Mapping[str, Hold], frozenset[str], tuple[Misfit, ...]]:
        """The pods to hold, the maps in which not everybody gets an entry, and whom to blame.

        When nobody is left to be held it does not fit all the same: an actuator then has to refuse it.
        """
        while (short := shortage(self._have, self._want, self._capacity)) is not None:
            if not (self._hold_newcomers(short) or self._cut(short) or self._close_largest(short)):
                break
            self._want = self._probe.advance(self._snapshot, dict(self._held))[-1]
            self._want = cut(self._want, self._have, self._cuts, self._capacity)
        return self._held, frozenset(self._cuts), tuple(self._misfits.values())

    def _newcomers(self) -> Iterator[tuple[str, tuple[NetworkPolicy, ...]]]:
        """The pods that are not judged as they were last, and the policies that make the difference."""
        for key in self._snapshot.local.keys() & self._snapshot.pods.keys():
            now, good = self._probe.policies_of(key), self._good_of(key)
            before = () if good is None else good.policies
            if good is None or now != before:
                yield key, tuple(policy for policy in now if policy not in before) or now

    def _good_of(self, key: str) -> _Good | None:
        good = self._good.get(key)
        return good if good is not None and good.uid == self._snapshot.pods[key].uid else None

    # --- what can be done ---------------------------------------------------------------------------------

    def _hold_newcomers(self, short: Shortage) -> bool:
        """Pods of the policies that came and ask for most, as many as must be; whether there was one."""
        pods: dict[str, list[str]] = {}
        for key, policies in self._changed.items():
            if key not in self._held:
                for each in policies:
                    pods.setdefault(each.key, []).append(key)
        missing = short.needed - short.capacity
        for policy, entries in self._demands(short.place, pods):
            if missing <= 0:
                break
            missing -= entries
            for key in pods[policy]:
                good = self._good_of(key) if self._overflow is Overflow.KEEP else None
                self._held[key] = CLOSED if good is None else Hold.on(good.policies)
            fates = {key: Fate.CLOSED if self._held[key] is CLOSED else Fate.KEPT for key in pods[policy]}
            self._blame(policy, short, entries, fates)
        return missing < short.needed - short.capacity

    def _cut(self, short: Shortage) -> bool:
        """The cluster has grown: whoever has no entry yet gets none."""
        if self._overflow is not Overflow.KEEP or short.place in self._cuts or short.place not in CUTTABLE:
            return False
        self._cuts.add(short.place)
        pods = self._judging()
        for policy, entries in self._demands(short.place, pods)[:1]:
            self._blame(policy, short, entries, dict.fromkeys(pods[policy], Fate.CUT))
        return True

    def _close_largest(self, short: Shortage) -> bool:
        """The pods of the policy that has most, of whoever is left."""
        pods = self._judging()
        for policy, entries in self._demands(short.place, pods)[:1]:
            self._held |= dict.fromkeys(pods[policy], CLOSED)
            self._blame(policy, short, entries, dict.fromkeys(pods[policy], Fate.CLOSED))
            return True
        return False

    def _judging(self) -> dict[str, list[str]]:
        """Of each policy the pods that are judged by it now."""
        pods: dict[str, list[str]] = {}
        for key in self._snapshot.local.keys() & self._snapshot.pods.keys():
            if self._held.get(key) is not CLOSED:
                sets = (self._want.sets[number] for number in self._probe.sets_of(key))
                for policy in {policy for rules in sets for policy in rules.policies}:
                    pods.setdefault(policy, []).append(key)
        return pods

    def _demands(self, place: str, pods: Mapping[str, Sequence[str]]) -> list[tuple[str, int]]:
        """What the rules of each policy's pods bring into a map, the most first; none that bring nothing."""
        if PLACES[place] == "cidrs":
            found = {policy: self._prefixes(policy, place) for policy in pods}
        else:
            there = entries_in(self._have, place)
            asked = asked_by(self._want, place, [key for key in entries_in(self._want, place) if key not in there])
            found = {
                policy: sum(asked[number] for number in {it for key in keys for it in self._probe.sets_of(key)})
                for policy, keys in pods.items()
            }
        return sorted(((it, count) for it, count in found.items() if count), key=lambda it: (-it[1], it[0]))

    def _prefixes(self, policy: str, place: str) -> int:
        """A trie has an entry for what is excepted too, which no set of rules leads to."""
        there = self._snapshot.policies.get(policy)
        return 0 if there is None else sum(place_of("cidrs", prefix) == place for prefix in prefixes_of(there))

    def _blame(self, policy: str, short: Shortage, entries: int, pods: Mapping[str, Fate]) -> None:
        there, known = self._snapshot.policies.get(policy), self._misfits.get(policy)
        if known is not None:
            self._misfits[policy] = replace(known, pods={**known.pods, **pods})
            return
        uid = there.uid if there is not None else ""
        self._misfits[policy] = Misfit(policy, uid, *short, entries, largest(self._want, short.place), pods)


def shortage(have: Contents, want: Contents, capacity: Mapping[str, int]) -> Shortage | None:
    """A map in which there is no room for what comes beside what it replaces."""
    for place in PLACES:
        needed = needed_in(place, (have, want), capacity[place])
        if needed > capacity[place]:
            return Shortage(place, needed, capacity[place])
    return None


def cut(contents: Contents, have: Contents, places: Collection[str], capacity: Mapping[str, int]) -> Contents:
    """Without entries for which these maps have no room beside what they have. Pods of this node have theirs."""
    for place in places:
        entries, there = entries_in(contents, place), entries_in(have, place)
        stay = {key: value for key, value in entries.items() if key in there or _is_essential(value)}
        reserve = capacity[place] // LOCAL_SHARE if place == "policy_peers" else 0
        room = max(0, capacity[place] - reserve - len(there.keys() | stay.keys()))
        added = sorted(entries.keys() - stay.keys())[:room]
        contents = replace(contents, **{PLACES[place]: stay | {key: entries[key] for key in added}})
    return contents


def _is_essential(value: Any) -> bool:
    """An address with a set of its own is judged only if it has an entry."""
    return isinstance(value, Peer) and bool(value.egress_set or value.ingress_set)
