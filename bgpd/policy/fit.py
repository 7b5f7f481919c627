"""Decides which pods of this node are held back while the rules of all do not fit into the kernel's maps. Pure.

`compile` knows no limits; this asks it, counts, and asks again with pods held until everything fits. A pod is held as
a whole, on the rules that it was last given or closed, whichever `Overflow` says; the policies that did not fit are
its `Misfit`s. Whoever has not changed is left alone: what is to blame is what came, the most demanding first, or what
is not in the kernel yet when the daemon starts. A pod that never had rules here is closed.

The cluster may outgrow a map while no policy changes. Rules that are kept then let in whom they let in before, as far
as there is room, for what has no entry is denied: only pods of this node must have one, or they would be open.

What did not fit is not tried with every change of the cluster, which would have to wait for it: pods that it selects
are held unasked for as long as it stays as it is. Room may come by itself: whoever asks must ask again, by `advance`
with `again`. Each try, and taking it back, costs what the policies cost that do not fit.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, NamedTuple

from bgpd.datapath.layout import MAPS, Peer
from bgpd.model.pod import Pod
from bgpd.model.policy import NetworkPolicy, Overflow, Snapshot
from bgpd.policy.compile import CLOSED, NO_HOLDS, Compiler, Hold
from bgpd.policy.entries import PLACES, Contents, asked_by, entries_in, largest, needed_in, place_of
from bgpd.policy.resolve import prefixes_of, selects
from bgpd.runtime.diff import changed

LOCAL_SHARE = 128  # one in so many entries of policy_peers is left for pods of this node: 1,024, and 110 is usual
CAPACITY: Mapping[str, int] = {place: MAPS[place].max_entries for place in PLACES}
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


class _State(NamedTuple):
    """Who is held, the maps in which not everybody has an entry, and whom to blame."""

    held: Mapping[str, Hold]
    cuts: frozenset[str]
    misfits: tuple[Misfit, ...]


_ALL_FITS = _State(NO_HOLDS, frozenset(), ())


class Fitting:
    """Ask it with each snapshot in turn, as the compiler. `capacity` is by map."""

    def __init__(self, capacity: Mapping[str, int]) -> None:
        self._capacity = capacity
        self._compiler = Compiler()
        self._last: Snapshot | None = None
        self._state = _ALL_FITS
        self._good: dict[str, _Good] = {}
        self._refused: dict[str, NetworkPolicy | None] = {}  # what `misfits` name, as it was when it did not fit
        self._full: Mapping[str, int] = {}  # how many entries the maps had in which something did not fit
        self._edited = False  # since the last try: other policies of pods that are held, or what is cut

    @property
    def misfits(self) -> tuple[Misfit, ...]:
        """The policies that are not in force on some pods."""
        return self._state.misfits

    @property
    def all_fits(self) -> bool:
        """Whether there is nothing that is worth another try."""
        return self._state == _ALL_FITS

    def may_fit(self, have: Contents) -> bool:
        """Whether what did not fit asks for less since, or a map in which it did not has fewer entries than then."""
        return self._edited or any(len(entries_in(have, place)) < count for place, count in self._full.items())

    def owner(self, address: bytes) -> str | None:
        """The pod that has the address in the last snapshot, as struct policy_address has it; None: none has."""
        return self._compiler.owner(address)

    def advance(
        self, snapshot: Snapshot, have: Contents, overflow: Overflow, *, again: bool = True
    ) -> tuple[Contents, ...]:
        """The stages that lead to what is to be programmed. `have` is what the kernel has.

        Without `again` what did not fit is not tried unless it has been changed itself.
        """
        if again or self._last is None:
            state, self._refused, self._full, self._edited = _ALL_FITS, {}, {}, False
        else:
            state = self._still(snapshot, self._last, overflow)
        stages = self._advance(snapshot, have, state)
        if shortage(have, stages[-1], self._capacity) is not None:
            choice = _Choice(self._compiler, self._capacity, snapshot, have, overflow, self._good, state)
            state = choice.made(stages[-1])
            if self._last is None:
                self._compiler = Compiler()
            else:  # numbers do not depend on what it saw: it is where it was, and the stages begin there
                self._compiler.advance(self._last, self._state.held)
            stages = self._advance(snapshot, have, state)
        places = {misfit.place for misfit in state.misfits}
        self._full = {place: self._full.get(place, len(entries_in(have, place))) for place in places}
        names = [misfit.policy for misfit in state.misfits]
        self._refused = {name: self._refused.get(name, snapshot.policies.get(name)) for name in names}
        self._good = dict(self._remembered(snapshot, state.held))
        self._state, self._last = state, snapshot
        return stages

    def _advance(self, snapshot: Snapshot, have: Contents, state: _State) -> tuple[Contents, ...]:
        stages = self._compiler.advance(snapshot, state.held)
        return (cut(stages[-1], have, state.cuts, self._capacity),) if state.cuts else stages

    # --- who stays held -----------------------------------------------------------------------------------

    def _still(self, snapshot: Snapshot, last: Snapshot, overflow: Overflow) -> _State:
        """Those whose own policies are as they were, and whoever is selected by what did not fit."""
        if self._state == _ALL_FITS:
            return _ALL_FITS
        self._refused = {
            name: policy for name, policy in self._refused.items() if snapshot.policies.get(name) == policy
        }
        self._edited |= any(misfit.policy not in self._refused for misfit in self.misfits)
        names = changed(snapshot.policies, last.policies)
        news = [each[name] for each in (last.policies, snapshot.policies) for name in names if name in each]
        held = {}
        for key in snapshot.local.keys() & snapshot.pods.keys():
            pod, before, hold = snapshot.pods[key], last.pods.get(key), self._state.held.get(key)
            good = _same(self._good.get(key), pod)
            if hold is not None and hold is not CLOSED and good is None:
                hold = CLOSED  # another pod of its name
            is_new = before is None or before.labels != pod.labels or any(selects(each, pod) for each in news)
            if hold is not None and not is_new:
                held[key] = hold
            elif any(each is not None and selects(each, pod) for each in self._refused.values()):
                held[key] = hold or _hold(good, overflow)
                self._edited |= hold is not None
        return _State(held, self._state.cuts, tuple(self._known(snapshot, held)))

    def _known(self, snapshot: Snapshot, held: Mapping[str, Hold]) -> Iterator[Misfit]:
        """The misfits that still are, with the pods that are held now."""
        for misfit in self.misfits:
            refused = self._refused.get(misfit.policy)
            pods: dict[str, Fate] = {
                key: fate for key, fate in misfit.pods.items() if fate is Fate.CUT and key in snapshot.local
            }
            for key, hold in held.items():
                if key in misfit.pods or (refused is not None and selects(refused, snapshot.pods[key])):
                    pods[key] = _fate(hold)
            if pods:
                yield replace(misfit, pods=pods)

    def _remembered(self, snapshot: Snapshot, held: Mapping[str, Hold]) -> Iterator[tuple[str, _Good]]:
        """Mostly pods and policies are the very objects that they were: whoever waits does not wait for these."""
        last = self._last if self._last is not None and self._last.policies is snapshot.policies else None
        for key in snapshot.local:
            pod, good = snapshot.pods.get(key), self._good.get(key)
            is_same = last is not None and last.pods.get(key) is pod and key not in self._state.held
            if good is not None and (key in held or is_same):
                yield key, good
            elif pod is not None and key not in held:
                yield key, _Good(pod.uid, self._compiler.policies_of(key))


def _hold(good: _Good | None, overflow: Overflow) -> Hold:
    return CLOSED if good is None or overflow is Overflow.CLOSE else Hold.on(good.policies)


def _fate(hold: Hold) -> Fate:
    return Fate.CLOSED if hold is CLOSED else Fate.KEPT


def _same(good: _Good | None, pod: Pod) -> _Good | None:
    """None: it is of another pod of that name."""
    return good if good is not None and good.uid == pod.uid else None


class _Choice:
    """Whom to hold, for one snapshot, beside those in `state`. `probe` has been asked about it, and is again."""

    def __init__(
        self,
        probe: Compiler,
        capacity: Mapping[str, int],
        snapshot: Snapshot,
        have: Contents,
        overflow: Overflow,
        good: Mapping[str, _Good],
        state: _State,
    ) -> None:
        self._probe, self._capacity, self._snapshot, self._have = probe, capacity, snapshot, have
        self._overflow, self._good = overflow, good
        self._held = dict(state.held)
        self._cuts = set(state.cuts)
        self._misfits = {misfit.policy: misfit for misfit in state.misfits}
        self._changed = dict(self._newcomers())

    def made(self, want: Contents) -> _State:
        """Instead of `want`. When nobody is left to be held it does not fit: an actuator then has to refuse it."""
        self._want = want
        while (short := shortage(self._have, self._want, self._capacity)) is not None:
            if not (self._hold_newcomers(short) or self._cut(short) or self._close_largest(short)):
                break
            self._want = self._probe.advance(self._snapshot, dict(self._held))[-1]
            self._want = cut(self._want, self._have, self._cuts, self._capacity)
        return _State(self._held, frozenset(self._cuts), tuple(self._misfits.values()))

    def _newcomers(self) -> Iterator[tuple[str, tuple[NetworkPolicy, ...]]]:
        """The pods that are not judged as they were last, and the policies that make the difference."""
        for key in self._snapshot.local.keys() & self._snapshot.pods.keys():
            now, good = self._probe.policies_of(key), _same(self._good.get(key), self._snapshot.pods[key])
            before = () if good is None else good.policies
            if good is None or now != before:
                yield key, tuple(policy for policy in now if policy not in before) or now

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
                self._held[key] = _hold(_same(self._good.get(key), self._snapshot.pods[key]), self._overflow)
            self._blame(policy, short, entries, {key: _fate(self._held[key]) for key in pods[policy]})
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
