"""What is known of peers' places while nobody has asked for one yet."""

from __future__ import annotations

import asyncio
from typing import Any

import yaml

from bgpd.bgp.discovery import Discovery
from bgpd.config.load import Loaded
from bgpd.config.parse import parse
from bgpd.model.uplink import NOT_READ, Uplinks
from bgpd.runtime.store import Store

BY_ADDRESS = {"name": "addressed", "peerAddress": "192.0.2.1", "peerASN": 65001}
BY_INTERFACE = {"name": "unnumbered", "interface": "bgpd-none", "peerASN": 65001}


def loaded(*peers: Any) -> Loaded:
    document = {"source": {"manifests": "/m"}, "bgp": {"localASN": 64512, "peers": [*peers]}}
    return Loaded(parse(yaml.safe_dump(document).encode(), "bgpd.yaml").config, {}, ())


def test_peers_that_come_after_the_start_are_not_missed_before_the_first_look() -> None:
    """Sessions of theirs from before must not go because nobody has looked for their peers yet."""

    async def scenario() -> bool:
        config, uplinks = Store(loaded(BY_ADDRESS)), Store[Uplinks](NOT_READ)
        config.publish(loaded(BY_ADDRESS))
        async with asyncio.TaskGroup() as group:
            running = group.create_task(Discovery(config, uplinks).run())
            await uplinks.newer_than(uplinks.newest.revision)
            config.publish(loaded(BY_INTERFACE))
            known = uplinks.newest.synced
            running.cancel()
        return known

    assert not asyncio.run(scenario())
