"""Brings a pinned list to what standard input says, one CIDR a line, as the daemon would. To be killed on the way."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping
from pathlib import Path

from bgpd.datapath import loader
from bgpd.masq.map import Held, MasqList, own_maps, wanted
from bgpd.model.lpm import LpmKey
from bgpd.model.prefix import parse_prefix
from bgpd.runtime.diff import diff


def main(directory: Path, lines: list[str]) -> None:
    installed = loader.install(loader.shipped("masq"), directory)
    want = wanted(frozenset(LpmKey.of(parse_prefix(line)) for line in lines), counted=True)
    asyncio.run(bring(MasqList(lambda: own_maps(installed, directory, 4)), want))


async def bring(target: MasqList, want: Mapping[LpmKey, Held]) -> None:
    have = await target.observe()
    await target.apply(diff(want, have, lambda key: key.order, prune=True))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.stdin.read().split())
