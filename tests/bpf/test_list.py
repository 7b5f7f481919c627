"""The masquerade list in real maps: what the reconcile loop makes of it, whatever happens to it or to us."""

from __future__ import annotations

import asyncio
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from ipaddress import IPv4Network, ip_network
from pathlib import Path

import pytest

from bgpd.datapath import loader, pins
from bgpd.datapath.layout import COUNTER, IPMASQ_ENTRIES, MAPS, PRESENT
from bgpd.datapath.loader import Installed
from bgpd.datapath.maps import Map
from bgpd.masq.map import Held, ListMaps, MasqList, cilium_maps, own_maps, wanted
from bgpd.model.lpm import LpmKey
from bgpd.model.prefix import Prefix
from bgpd.runtime.diff import diff
from bgpd.runtime.reconcile import RESYNC_S, Desired, Reconciler, Round
from tests.bpf import edit
from tests.bpf.source import ROOT

RDONLY, RDONLY_PROG = 1 << 3, 1 << 7  # BPF_F_
SEED = [*(f"11.8.37.{host}/32" for host in (4, 5, 6, 252, 253, 254)), "11.11.248.0/21", "169.254.0.0/16"]


def numbered(count: int, first: int = 0) -> list[str]:
    """CIDRs that do not overlap."""
    return [str(IPv4Network(((10 << 24) + (number << 8), 24))) for number in range(first, first + count)]


def networks(texts: Iterable[str]) -> list[Prefix]:
    return [ip_network(text) for text in texts]


class Subject:
    """One list under the loop, in a time of its own."""

    def __init__(self, maps: MasqList, *, counted: bool = True) -> None:
        self.rounds: list[Round] = []
        self.want: Mapping[LpmKey, Held] = {}
        self.counted, self.now = counted, 0.0
        self.loop = Reconciler(
            "masq",
            lambda: Desired(self.want, complete=True),
            maps,
            lambda key: key.order,
            self.rounds.append,
            clock=lambda: self.now,
        )

    def bring(self, texts: Iterable[str]) -> Round | None:
        """What the round did that made the list this one; None: there was nothing to do."""
        self.want = wanted(frozenset(map(LpmKey.of, networks(texts))), counted=self.counted)
        return self.round()

    def resync(self) -> Round | None:
        self.now += RESYNC_S
        return self.round()

    def round(self) -> Round | None:
        before = len(self.rounds)
        asyncio.run(self.loop.round())
        return self.rounds[-1] if len(self.rounds) > before else None


@pytest.fixture
def subject(directory: Path, masq: Installed) -> Subject:
    return Subject(MasqList(lambda: own_maps(masq, directory, 4)))


def texts(target: Map) -> set[str]:
    """What is in it, by iteration, as it was written."""
    return {str(LpmKey.read(key)) for key in target.entries()}


def both(installed: Installed, version: int = 4) -> list[set[str]]:
    """What is listed, and what has a counter."""
    return [texts(installed.maps[f"{name}_v{version}"]) for name in ("ipmasq", "ipmasq_hits")]


def counts(found: Round | None) -> tuple[int, int, int, int]:
    assert found is not None
    return found.added, found.updated, found.removed, found.drift


def test_the_maps_hold_the_list_and_nothing_else(subject: Subject, masq: Installed) -> None:
    """And once they do, there is nothing to do: neither at once nor after a resync."""
    assert counts(subject.bring(SEED)) == (len(SEED), 0, 0, 0)
    assert both(masq) == [set(SEED), set(SEED)]
    assert subject.bring(reversed(SEED)) is None
    assert subject.resync() is None
    assert both(masq, 6) == [set(), set()]


def test_the_families_do_not_mix(directory: Path, masq: Installed) -> None:
    subject = Subject(MasqList(lambda: own_maps(masq, directory, 6)))
    subject.bring(["fe80::/10", "2001:db8::/32"])
    assert both(masq, 6) == [{"fe80::/10", "2001:db8::/32"}] * 2
    assert both(masq, 4) == [set(), set()]


def test_an_edit_changes_what_differs_and_leaves_the_hits_of_the_rest(subject: Subject, masq: Installed) -> None:
    subject.bring(SEED)
    kept = LpmKey.of(ip_network(SEED[0]))
    masq.maps["ipmasq_hits_v4"].update({kept: COUNTER.pack(42)})
    assert counts(subject.bring([*SEED[:-1], "192.0.2.0/24"])) == (1, 0, 1, 0)
    assert both(masq) == [{*SEED[:-1], "192.0.2.0/24"}] * 2
    assert masq.maps["ipmasq_hits_v4"].lookup(kept) == COUNTER.pack(42)


def test_every_change_may_be_applied_twice(directory: Path, masq: Installed) -> None:
    target = MasqList(lambda: own_maps(masq, directory, 4))

    async def bring(prefixes: list[str]) -> None:
        want = wanted(frozenset(map(LpmKey.of, networks(prefixes))), counted=True)
        changes = diff(want, await target.observe(), lambda key: key.order, prune=True)
        await target.apply(changes)
        await target.apply(changes)
        assert await target.observe() == want

    asyncio.run(bring(SEED))
    asyncio.run(bring([*SEED[2:], "192.0.2.0/24"]))


def test_entries_that_others_changed_are_repaired_and_counted(subject: Subject, masq: Installed) -> None:
    """Removed, added, and a counter removed: three entries that differ."""
    subject.bring(SEED)
    masq.maps["ipmasq_v4"].delete([LpmKey.of(ip_network(SEED[0]))])
    masq.maps["ipmasq_hits_v4"].delete([LpmKey.of(ip_network(SEED[1]))])
    masq.maps["ipmasq_v4"].update({LpmKey.of(ip_network("198.51.100.0/24")): PRESENT})
    assert counts(subject.resync()) == (0, 2, 1, 3)
    assert both(masq) == [set(SEED), set(SEED)]


def test_a_list_that_somebody_emptied_is_filled_again(subject: Subject, masq: Installed) -> None:
    subject.bring(SEED)
    for target in masq.maps.values():
        if target.spec.name.startswith("ipmasq"):
            target.delete(target.entries())
    assert counts(subject.resync()) == (len(SEED), 0, 0, len(SEED))
    assert both(masq) == [set(SEED), set(SEED)]


def test_stale_entries_of_an_earlier_life_go(directory: Path, masq: Installed) -> None:
    """And what they share with the new list is not touched."""
    Subject(MasqList(lambda: own_maps(masq, directory, 4))).bring([*SEED, *numbered(100)])
    later = Subject(MasqList(lambda: own_maps(loader.install(loader.shipped("masq"), directory), directory, 4)))
    assert counts(later.bring(SEED)) == (0, 0, 100, 0)
    assert both(masq) == [set(SEED), set(SEED)]


def test_an_entry_with_host_bits_is_the_entry_without(subject: Subject, masq: Installed) -> None:
    """As somebody may have written it. Taken for a stale one it would be removed, and the wanted one with it."""
    masq.maps["ipmasq_v4"].update({struct.pack("=I4B", 16, 2, 2, 2, 2): PRESENT})
    subject.bring(["2.2.0.0/16"])
    assert both(masq) == [{"2.2.0.0/16"}, {"2.2.0.0/16"}]
    assert subject.resync() is None


def test_a_map_whose_pin_was_removed_is_pinned_again(subject: Subject, directory: Path, masq: Installed) -> None:
    """The same map: the program asks it all the time, pinned or not."""
    subject.bring(SEED)
    (directory / "ipmasq_v4").unlink()
    assert subject.resync() is None
    found = pins.open_map(directory / "ipmasq_v4", MAPS["ipmasq_v4"])
    assert found is not None
    assert found.id == masq.maps["ipmasq_v4"].id


# --- room ---------------------------------------------------------------------------------------------------------


def test_as_many_entries_as_the_map_holds_fit(subject: Subject, masq: Installed) -> None:
    full = numbered(IPMASQ_ENTRIES)
    assert counts(subject.bring(full)) == (IPMASQ_ENTRIES, 0, 0, 0)
    assert both(masq) == [set(full), set(full)]


def test_a_list_that_does_not_fit_changes_nothing(subject: Subject, masq: Installed) -> None:
    """Not even a part of it, and the loop says why. A list that fits is taken at once."""
    subject.bring(SEED)
    found = subject.bring(numbered(IPMASQ_ENTRIES + 1))
    assert found is not None
    said = (
        "the list comes to 16,385 entries and the map ipmasq_v4 holds 16,384; shorten it, the old list stays in use"
    )
    assert (found.error, subject.loop.error) == (said, said)
    assert both(masq) == [set(SEED), set(SEED)]
    subject.bring(numbered(IPMASQ_ENTRIES))
    assert both(masq) == [set(numbered(IPMASQ_ENTRIES))] * 2
    assert subject.loop.settled


def test_two_lists_that_do_not_fit_together_follow_each_other(subject: Subject, masq: Installed) -> None:
    """10,000 entries, none of which is in the 10,000 before."""
    subject.bring(["0.0.0.0/0", *numbered(9_999)])
    assert counts(subject.bring(["0.0.0.0/0", *numbered(9_999, first=20_000)])) == (9_999, 0, 9_999, 0)
    assert both(masq) == [{"0.0.0.0/0", *numbered(9_999, first=20_000)}] * 2


def test_a_map_that_somebody_filled_is_put_right(subject: Subject, masq: Installed) -> None:
    """Full in the middle of an edit: nothing of the old list is gone by then, and the next round makes room."""
    subject.bring(SEED)
    foreign = numbered(IPMASQ_ENTRIES - len(SEED) - 1, first=1000)
    masq.maps["ipmasq_v4"].update(dict.fromkeys(map(LpmKey.of, networks(foreign)), PRESENT))
    new = [*SEED[3:], *numbered(3)]
    found = subject.bring(new)
    assert found is not None
    assert found.error == "writing the map ipmasq_v4: it is full, with 16,384 entries"
    assert set(SEED) <= texts(masq.maps["ipmasq_v4"])
    subject.round()
    assert both(masq) == [set(new), set(new)]


# --- Cilium's maps ------------------------------------------------------------------------------------------------


def test_cilium_s_map_is_made_as_cilium_would(directory: Path) -> None:
    subject = Subject(MasqList(lambda: cilium_maps(directory, 4)), counted=False)
    subject.bring(SEED)
    found = pins.open_map(directory / "cilium_ipmasq_v4", MAPS["ipmasq_v4"])
    assert found is not None
    assert texts(found) == set(SEED)
    assert set(found.entries().values()) == {b"\0"}  # Cilium's own value, its padding
    assert [path.name for path in directory.iterdir()] == ["cilium_ipmasq_v4"]


def test_a_map_that_cilium_made_anew_is_the_one_that_is_filled(directory: Path) -> None:
    """Cilium restarts, pins another map under the name; its datapath asks that one."""
    subject = Subject(MasqList(lambda: cilium_maps(directory, 4)), counted=False)
    subject.bring(SEED)
    other = Map.create(replace(MAPS["ipmasq_v4"], name="cilium_ipmasq_v4"))
    pins.substitute(other.fd, directory / "cilium_ipmasq_v4")
    assert counts(subject.resync()) == (len(SEED), 0, 0, len(SEED))
    assert texts(other) == set(SEED)


def test_cilium_s_map_may_have_flags_of_its_own(directory: Path) -> None:
    """Newer releases let programs only read it, which is nothing to us."""
    spec = replace(MAPS["ipmasq_v4"], name="cilium_ipmasq_v4", flags=MAPS["ipmasq_v4"].flags | RDONLY_PROG)
    cilium = pins.open_or_create(directory / spec.name, spec)
    Subject(MasqList(lambda: cilium_maps(directory, 4)), counted=False).bring(SEED)
    assert texts(cilium) == set(SEED)


def test_cilium_s_map_with_other_sizes_is_refused_and_left_alone(directory: Path) -> None:
    spec = replace(MAPS["ipmasq_v4"], name="cilium_ipmasq_v4", max_entries=1024)
    foreign = pins.open_or_create(directory / spec.name, spec)
    subject = Subject(MasqList(lambda: cilium_maps(directory, 4)), counted=False)
    found = subject.bring(SEED)
    assert found is not None
    assert "cilium_ipmasq_v4: its max_entries is 1024, not 16384" in found.error
    assert foreign.entries() == {}


# --- killed on the way --------------------------------------------------------------------------------------------

OLD = numbered(6_000)
TOGETHER = numbered(10_000, first=5_000)  # 15,000 with the old ones
APART = numbered(12_000, first=5_000)  # 17,000, more than the map holds
CALL = re.compile(r"^bpf\((BPF_MAP_(?:UPDATE|DELETE)_(?:BATCH|ELEM)),")


class Strace:
    """Runs `edit` and counts its bpf calls, or kills it when it makes the call of a given number."""

    def __init__(self, directory: Path, tmp_path: Path, new: Sequence[str]) -> None:
        if shutil.which("strace") is None:
            pytest.skip("not installed: strace")
        self.directory, self.log, self.new = directory, tmp_path / "calls", new

    def __call__(self, *options: str) -> int:
        command = ["strace", "-qq", "--trace=bpf", f"--output={self.log}", *options]
        command += [sys.executable, "-m", edit.__name__, str(self.directory)]
        done = subprocess.run(command, cwd=ROOT, input="\n".join(self.new), text=True, timeout=60, check=False)
        return done.returncode

    def steps(self) -> list[int]:
        """The numbers of the calls that write, and one that comes after all of them."""
        assert self() == 0
        lines = [line for line in self.log.read_text().splitlines() if line.startswith("bpf(")]
        writes = [number for number, line in enumerate(lines, start=1) if CALL.match(line)]
        return [*writes, writes[-1] + 1]

    def kill_at(self, number: int) -> bool:
        """Whether it got that far."""
        return self(f"--inject=bpf:signal=KILL:when={number}") == -signal.SIGKILL


@pytest.mark.parametrize("new", [TOGETHER, APART], ids=["both fit", "both do not fit"])
def test_killed_at_any_step_the_list_is_the_old_the_new_or_both(
    directory: Path, tmp_path: Path, subject: Subject, masq: Installed, new: list[str]
) -> None:
    """10,000 come and more, 5,000 go. A kill leaves no gap, and whoever starts next makes it the new list.

    What is in both lists is there throughout. Where old and new do not fit together, that is all one can have.
    """
    strace = Strace(directory, tmp_path, new)
    subject.bring(OLD)
    steps = strace.steps()
    seen = []
    for number in steps:
        subject.loop.kick(stale=True)
        subject.bring(OLD)
        assert strace.kill_at(number) == (number != steps[-1])
        listed, counted = both(masq)
        assert {*OLD} & {*new} <= listed <= {*OLD, *new}
        assert listed <= counted, "an entry without a counter"
        if new is TOGETHER:
            assert listed >= {*OLD} or listed >= {*new}
        seen.append(len(listed))
    assert strace() == 0
    assert both(masq) == [set(new), set(new)]
    assert {len(OLD), min(len({*OLD, *new}), IPMASQ_ENTRIES), len(new)} <= set(seen), "some step was not met"
    print(f"\nentries after a kill at each of {len(steps)} steps: {seen}")


# --- time ---------------------------------------------------------------------------------------------------------


def test_a_long_list_is_applied_and_edited(subject: Subject, masq: Installed) -> None:
    """As long as the benchmark's. Prints how long it took; how long it may take is the benchmark's to say."""
    times = {}
    for name, lines in {
        "16,000 from nothing": numbered(16_000),
        "one of them changed": [*numbered(15_999), "192.0.2.0/24"],
        "all gone": [],
    }.items():
        subject.want = wanted(frozenset(map(LpmKey.of, networks(lines))), counted=True)
        started = time.perf_counter()
        subject.round()
        times[name] = f"{(time.perf_counter() - started) * 1e3:.1f} ms"
        assert both(masq) == [set(lines), set(lines)]
    print(f"\na round, plan excluded: {times}")


def test_an_error_of_the_kernel_ends_the_round_and_not_the_loop() -> None:
    """A map that may only be read from here."""
    spec = replace(MAPS["ipmasq_v4"], flags=MAPS["ipmasq_v4"].flags | RDONLY)
    subject = Subject(MasqList(lambda: ListMaps(Map.create(spec), None)), counted=False)
    found = subject.bring(SEED)
    assert found is not None
    assert found.error == "writing the map ipmasq_v4: Operation not permitted"
