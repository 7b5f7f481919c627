"""When service addresses come and go: damping of those that flap, the brake, and what a new daemon believes."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bgpd.config.services import Services
from bgpd.model.bgp import AdvertisementType
from bgpd.model.candidate import Candidate
from bgpd.model.service import ServiceAddress
from bgpd.services.plan import COUNTED, Memory, ServicesPlan, State, plan
from bgpd.services.reach import AddressKey, Reach, Standing

STABLE_S = 10
FIT, UNREADY, ABSENT, FOREIGN = Standing.FIT, Standing.UNREADY, Standing.ABSENT, Standing.FOREIGN


def reach(name: str, standing: Standing) -> Reach:
    """Of a Service; those whose names begin with the same letter have the same address."""
    prefix = ip_network(f"203.0.113.{ord(name[0])}/32")
    offer = Candidate(AdvertisementType.SERVICE, prefix, f"Service shop/{name}")
    withheld = Candidate(AdvertisementType.SERVICE, prefix, offer.owner, withheld=f"{name} is {standing}")
    key = AddressKey(f"shop/{name}", ServiceAddress.LOAD_BALANCER_IP, str(prefix))
    return Reach(key, standing, offer, offer if standing is FIT else withheld)


class Node:
    """A daemon's plans, one after the other. A name that is not given stays as it was."""

    def __init__(self, percent: int = 100) -> None:
        self.settings = Services.model_validate({"stableSeconds": STABLE_S, "maxWithdrawnPercent": percent})
        self.now = 1000.0
        self.memory: Mapping[AddressKey, Memory] | None = None
        self.standings: dict[str, Standing] = {}
        self.plan = ServicesPlan()

    def sees(self, **standings: Standing) -> dict[str, str]:
        """The state of each by name, now."""
        self.standings |= standings
        reaches = [reach(name, standing) for name, standing in self.standings.items()]
        self.plan = plan(reaches, self.memory, self.settings, self.now)
        self.memory = self.plan.memory
        return {key.service.removeprefix("shop/"): each.state.value for key, each in self.memory.items()}

    def after(self, seconds: float, **standings: Standing) -> dict[str, str]:
        self.now += seconds
        return self.sees(**standings)

    @property
    def announced(self) -> set[str]:
        return {each.owner.removeprefix("Service shop/") for each in self.plan.candidates if not each.withheld}


def settled(percent: int = 100, **standings: Standing) -> Node:
    """One that has seen these for long."""
    node = Node(percent)
    node.sees(**standings)
    node.now += 10 * STABLE_S
    return node


# --- coming and going


def test_an_address_goes_at_once_and_comes_at_once() -> None:
    """One that was announced for long is not held back."""
    node = settled(a=FIT)
    assert node.sees(a=UNREADY) == {"a": "withdrawn"}
    assert node.announced == set()
    assert node.sees(a=FIT) == {"a": "announced"}
    assert node.plan.due is None


def test_a_new_service_is_announced_with_its_first_endpoint() -> None:
    """Pods that start are not ready yet: nothing was withdrawn then."""
    node = settled(a=FIT)
    assert node.sees(b=ABSENT)["b"] == "absent"
    assert node.sees(b=UNREADY)["b"] == "absent"
    assert node.sees(b=FIT)["b"] == "announced"


@pytest.mark.parametrize("lost", [UNREADY, ABSENT])
def test_one_that_flaps_comes_back_when_it_is_stable(lost: Standing) -> None:
    """Lost soon after it came, it must be fit for the whole time; each lapse begins it anew."""
    node = settled()
    assert node.sees(a=FIT) == {"a": "announced"}
    node.after(1, a=lost)
    assert node.after(1, a=FIT) == {"a": "settling"}
    assert node.plan.due == node.now + STABLE_S
    assert "203.0.113" not in node.plan.candidates[0].withheld
    assert "flaps" in node.plan.candidates[0].withheld
    node.after(STABLE_S - 1, a=lost)
    assert node.after(1, a=FIT) == {"a": "settling"}
    assert node.after(STABLE_S - 1) == {"a": "settling"}
    assert node.after(1) == {"a": "announced"}
    node.after(STABLE_S, a=lost)
    assert node.sees(a=FIT) == {"a": "announced"}


def test_with_no_time_to_be_stable_nothing_is_held_back() -> None:
    node = settled()
    node.settings = Services.model_validate({"stableSeconds": 0})
    node.sees(a=FIT)
    node.sees(a=ABSENT)
    assert node.sees(a=FIT) == {"a": "announced"}


def test_what_others_announce_is_withheld() -> None:
    """And is ours again as soon as it is."""
    node = settled(a=FIT)
    assert node.sees(a=FOREIGN) == {"a": "foreign"}
    assert node.announced == set()
    assert node.sees(a=FIT) == {"a": "announced"}


# --- the brake


def test_the_brake_keeps_those_that_were_lost_last() -> None:
    """Half of them go, in the order in which they were lost; the rest stay, each with a remark."""
    node = settled(50, a=FIT, b=FIT, c=FIT, d=FIT)
    node.after(1, d=UNREADY)
    node.after(1, b=UNREADY)
    assert node.after(1, a=UNREADY) == {"a": "kept", "b": "withdrawn", "c": "announced", "d": "withdrawn"}
    assert node.announced == {"a", "c"}
    assert [each.remark for each in node.plan.candidates if each.remark] == [
        "a is unready; kept: too many are without (services.maxWithdrawnPercent: 50)"
    ]


def test_the_brake_counts_an_address_once() -> None:
    """However many Services have it: a quarter of four is one, and one with an endpoint left is not lost."""
    several = {"a1": FIT, "a2": FIT, "a3": FIT, "b": FIT, "c": FIT, "d": FIT}
    node = settled(25, **several)
    assert node.sees(a1=UNREADY, a2=UNREADY)["a1"] == "withdrawn"
    assert node.after(1, b=UNREADY)["b"] == "withdrawn", "a is announced for a3"
    assert node.after(1, c=UNREADY)["c"] == "kept"
    node = settled(25, **several)
    found = node.sees(a1=UNREADY, a2=UNREADY, a3=UNREADY)
    assert {found[name] for name in ("a1", "a2", "a3")} == {"withdrawn"}
    assert node.after(1, b=UNREADY)["b"] == "kept"
    for percent, state in ((0, "kept"), (25, "withdrawn")):
        node = settled(percent, **several)
        node.sees(a1=UNREADY, a2=UNREADY)
        assert node.after(1, a3=UNREADY)["a3"] == state


def test_kept_for_ever_if_it_lasts() -> None:
    """No time lets them go, and when one comes back the longest kept one goes."""
    node = settled(50, a=FIT, b=FIT, c=FIT, d=FIT)
    node.sees(a=UNREADY, b=UNREADY)
    node.after(1, d=UNREADY)
    node.after(1, c=UNREADY)
    assert node.after(1e6) == {"a": "withdrawn", "b": "withdrawn", "c": "kept", "d": "kept"}
    assert node.sees(a=FIT) == {"a": "announced", "b": "withdrawn", "c": "kept", "d": "withdrawn"}


def test_one_address_may_go_whatever_the_share() -> None:
    """A node with one service address could never withdraw it otherwise; 0 says that none may."""
    assert settled(1, a=FIT).sees(a=UNREADY) == {"a": "withdrawn"}
    assert settled(0, a=FIT).sees(a=UNREADY) == {"a": "kept"}


def test_what_left_on_purpose_is_not_the_brakes() -> None:
    """Endpoints that are gone, or ready elsewhere: withdrawn all at once, and not counted later."""
    node = settled(50, a=FIT, b=FIT, c=FIT, d=FIT)
    assert set(node.sees(a=ABSENT, b=ABSENT, c=ABSENT).values()) == {"absent", "announced"}
    assert node.sees(d=UNREADY)["d"] == "withdrawn"


def test_a_new_daemon_amid_an_outage_withdraws_no_more_than_the_brake_allows() -> None:
    """It takes what is not ready for announced before, and what has no endpoint for what it is."""
    node = Node(50)
    states = node.sees(a=UNREADY, b=UNREADY, c=UNREADY, d=FIT, e=ABSENT)
    assert states == {"a": "withdrawn", "b": "withdrawn", "c": "kept", "d": "announced", "e": "absent"}


def test_what_a_new_daemon_finds_fit_has_been_so_for_long() -> None:
    """Its first loss is no flapping."""
    node = Node()
    node.sees(a=FIT)
    node.after(1, a=UNREADY)
    assert node.sees(a=FIT) == {"a": "announced"}


# --- whatever happens

steps = st.lists(
    st.tuples(st.integers(0, 2 * STABLE_S), st.dictionaries(st.sampled_from("abcde"), st.sampled_from(Standing))),
    max_size=30,
)


@given(steps, st.integers(0, 100))
def test_what_always_holds(history: list[tuple[int, dict[str, Standing]]], percent: int) -> None:
    """The share is kept, nothing fit is withdrawn but what flaps, a plan with no news is the same plan."""
    node = Node(percent)
    came: dict[str, float] = {}
    node.sees()
    for seconds, standings in history:
        before = node.memory or {}
        was = node.announced
        states = node.after(seconds, **standings)
        for name in node.announced - was:
            if node.standings[name] is FIT:
                assert node.now - came.get(name, -1e9) >= STABLE_S  # never oftener, whatever its endpoints do
                came[name] = node.now
        counted = sum(state in COUNTED for state in states.values())
        withdrawn = [name for name, state in states.items() if state == State.WITHDRAWN]
        newly = [name for name in withdrawn if name in was]
        assert not newly or len(withdrawn) <= max(counted * percent / 100, 1 if percent else 0)
        for name, standing in node.standings.items():
            assert standing is not FIT or states[name] in ("announced", "settling")
            assert name not in node.announced or standing in (FIT, UNREADY)
        again = plan([reach(*each) for each in node.standings.items()], node.memory, node.settings, node.now)
        assert again == node.plan
        backwards = [reach(*each) for each in reversed(node.standings.items())]
        assert plan(backwards, before, node.settings, node.now).memory == node.memory
        assert (node.plan.due is None) is (State.SETTLING not in states.values())


def test_what_the_brake_kept_has_not_flapped() -> None:
    """It was announced all the while: when it is lost long after that, it comes back at once."""
    node = settled(percent=0, a=ABSENT)
    node.sees(a=FIT)
    assert node.after(1, a=UNREADY) == {"a": "kept"}
    assert node.after(1, a=FIT) == {"a": "announced"}
    node.settings = Services.model_validate({"stableSeconds": STABLE_S})
    assert node.after(100 * STABLE_S, a=UNREADY) == {"a": "withdrawn"}
    assert node.after(1, a=FIT) == {"a": "announced"}
