"""Waits until no program is running that began before: then none has read what was replaced meanwhile."""

from __future__ import annotations

import sys

from bgpd.datapath.layout import MapSpec, MapType
from bgpd.datapath.libbpf import check, library, map_create
from bgpd.datapath.maps import Map


class GracePeriod:
    """The kernel waits so when a map in a map is replaced (`maybe_wait_bpf_programs`): this map is for that only."""

    def __init__(self) -> None:
        self._inner = Map.create(MapSpec("bgpd_grace", MapType.ARRAY, 4, 4, 1))
        self._outer = Map(map_create(MapType.ARRAY_OF_MAPS, "bgpd_grace", 4, 4, 1, 0, inner=self._inner.fd))

    def wait(self) -> None:
        """Some 10 ms, in the kernel."""
        inner = self._inner.fd.to_bytes(4, sys.byteorder)
        check("waiting for programs that run", library().bpf_map_update_elem(self._outer.fd, bytes(4), inner, 0))
