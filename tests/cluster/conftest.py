"""The control planes that the tests of this directory share: one for the whole run, one with a fabric per file.

Decides only how long each lives: the shared one from the first test that asks for it to the last test of the
run. Its first use on a machine builds it, which takes minutes; `python3 tests/cluster/build.py` does that
beforehand.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fabric.node import BgpdNode
from tests.fabric.topology import NodePlace

from .build import binaries
from .controlplane import ControlPlane
from .node import Cluster, bgpd_node, running_cluster


@pytest.fixture(scope="session")
def control_plane_binaries() -> Path:
    """The directory with what `build.py` builds, for tests that start a control plane or a node's part themselves."""
    return binaries()


@pytest.fixture(scope="session")
def control_plane(
    control_plane_binaries: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ControlPlane]:
    """A running control plane on 127.0.0.1. Tests leave it running, and use object names of their own."""
    with ControlPlane(tmp_path_factory.mktemp("control-plane"), control_plane_binaries) as running:
        yield running


@pytest.fixture(scope="module")
def cluster(control_plane_binaries: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """The two-ToR fabric with a control plane beside it, for the tests of one file."""
    with running_cluster(tmp_path_factory.mktemp("cluster"), control_plane_binaries) as running:
        yield running


@pytest.fixture
def place(cluster: Cluster) -> NodePlace:
    return cluster.fabric.nodes[0]


@pytest.fixture
def node(cluster: Cluster, place: NodePlace) -> Iterator[BgpdNode]:
    """The product on that node, not started."""
    with bgpd_node(cluster, place) as made:
        yield made
