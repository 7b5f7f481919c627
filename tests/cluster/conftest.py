"""The control plane that the tests of this directory share, one for the whole run.

Decides only how long it lives: from the first test that asks for it to the last test of the run. Its first
use on a machine builds it, which takes minutes; `python3 tests/cluster/build.py` does that beforehand.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from .build import binaries
from .controlplane import ControlPlane


@pytest.fixture(scope="session")
def control_plane_binaries() -> Path:
    """The directory with kube-apiserver and etcd, for tests that start a control plane of their own."""
    return binaries()


@pytest.fixture(scope="session")
def control_plane(
    control_plane_binaries: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ControlPlane]:
    """A running control plane on 127.0.0.1. Tests leave it running, and use object names of their own."""
    with ControlPlane(tmp_path_factory.mktemp("control-plane"), control_plane_binaries) as running:
        yield running
