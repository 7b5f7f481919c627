"""What counts when a source suddenly shows nothing of a kind, in virtual time."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from bgpd.model.configmap import ConfigMap
from bgpd.model.service import EndpointSlice, Service
from bgpd.runtime.reconcile import EMPTY_GRACE_S
from bgpd.virtualservers.believed import Believed, Known

ALL = Known(
    {"shop/vs": ConfigMap("shop/vs")}, {"shop/web": Service("shop", "web")}, {"shop/x": EndpointSlice("shop", "x")}
)
NODES: Mapping[str, None] = {"here": None}


def _believed(never_empty: bool = True) -> Believed:
    """It has seen all there is."""
    believed = Believed(never_empty)
    believed.take(ALL, NODES, 0.0)
    assert (believed.known, believed.held, believed.due) == (ALL, "", None)
    return believed


@pytest.mark.parametrize("newest", [ALL._replace(config_maps={}), Known({}, ALL.services, ALL.slices)])
def test_the_last_virtual_server_goes_late(newest: Known) -> None:
    """And not at all if it is back in time; the time begins anew then."""
    believed = _believed()
    believed.take(newest, NODES, 100.0)
    assert (believed.known, believed.due) == (ALL, 100.0 + EMPTY_GRACE_S)
    assert "no ConfigMap of a virtual server any more: those of before count on for 10 s" in believed.held
    believed.take(ALL, NODES, 105.0)
    assert (believed.held, believed.due) == ("", None)
    believed.take(newest, NODES, 109.0)
    believed.take(newest, NODES, 109.0 + EMPTY_GRACE_S - 0.1)
    assert believed.known == ALL
    believed.take(newest, NODES, 109.0 + EMPTY_GRACE_S)
    assert (believed.known, believed.held, believed.due) == (newest, "", None)
    believed.take(newest, NODES, 1000.0)
    assert believed.held == ""


@pytest.mark.parametrize(
    ("never_empty", "newest", "nodes", "lacks"),
    [
        (False, Known(), {}, "every Node"),
        (True, Known(), NODES, "the API server's own Service"),
        (True, ALL._replace(services={}), NODES, "the API server's own Service"),
        (True, ALL._replace(config_maps={}, slices={}), NODES, "the API server's own EndpointSlice"),
    ],
)
def test_a_source_that_has_lost_something(
    never_empty: bool, newest: Known, nodes: Mapping[str, None], lacks: str
) -> None:
    """What it does not show any more counts on for as long as that lasts; what it shows is believed."""
    believed = _believed(never_empty)
    believed.take(newest, nodes, 100.0)
    believed.take(newest, nodes, 100.0 + 100 * EMPTY_GRACE_S)
    assert (believed.known, believed.due) == (ALL, None)
    assert f"and lacks {lacks}: is it right?" in believed.held
    believed.take(ALL, NODES, 9000.0)
    assert believed.held == ""


def test_what_a_daemon_found_in_the_kernel_is_held_too() -> None:
    """It has not seen the objects that led there; where nothing was served nothing is held."""
    believed = Believed(False)
    believed.take(Known(), NODES, 0.0, served=True)
    assert (bool(believed.held), believed.due) == (True, EMPTY_GRACE_S)
    believed.take(Known(), NODES, EMPTY_GRACE_S, served=True)
    assert believed.held == ""
    fresh = Believed(False)
    fresh.take(Known(), NODES, 0.0)
    assert (fresh.held, fresh.known) == ("", Known())


def test_a_node_that_is_deleted_takes_nothing_along() -> None:
    """While its objects are there, and nothing is held that nobody has asked for."""
    believed = _believed()
    believed.take(ALL, {}, 100.0)
    assert (believed.held, believed.known) == ("", ALL)
