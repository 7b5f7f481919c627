"""ExaBGP started directly, with a configuration file of the test: the far end of this library's tests.

This decides how a stock ExaBGP is started in a namespace and how the simplest configuration reads. It does
not know the daemon, which has its own way to run ExaBGP; tests of the daemon do not use this.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from tests.fabric.netns import Namespace
from tests.fabric.process import Process

PROGRAM = Path(sys.executable).with_name("exabgp")

# `user=root`: a change of user id would lose the signal that ends the child with the test.
ENVIRONMENT = {
    "exabgp_daemon_user": "root",
    "exabgp_daemon_daemonize": "false",
    "exabgp_api_cli": "false",
    "exabgp_log_level": "INFO",
    "exabgp_log_destination": "stderr",
    "exabgp_reactor_speed": "0.1",
}


def configuration(
    *,
    local_address: str,
    router_id: str,
    asn: int,
    peers: Sequence[tuple[str, int]],
    routes: Sequence[str] = (),
    session: str = "hold-time 9;",
    families: Sequence[str] = ("ipv4 unicast", "ipv6 unicast"),
    graceful_restart_s: int = 120,
) -> str:
    """One neighbor block for each (address, ASN); `routes` are ExaBGP's static routes without the semicolon.

    `session` is put into every neighbor block as it is; `graceful_restart_s` 0 leaves the capability out.
    """
    static = "\n".join(f"    {route};" for route in routes)
    restart = f"graceful-restart {graceful_restart_s};" if graceful_restart_s else ""
    listed = " ".join(f"{family};" for family in families)
    return "\n".join(
        f"""neighbor {address} {{
  router-id {router_id};
  local-address {local_address};
  local-as {asn};
  peer-as {peer_asn};
  {session}
  family {{ {listed} }}
  capability {{ {restart} asn4 enable; route-refresh enable; }}
  static {{
{static}
  }}
}}
"""
        for address, peer_asn in peers
    )


def start(namespace: Namespace, text: str, name: str = "exabgp", *, listen_port: int = 0) -> Process:
    """Write the configuration and start ExaBGP with it; with a `listen_port` the peers can dial it too."""
    path = namespace.lab.directory / f"{namespace.name}-{name}.conf"
    path.write_text(text)
    env = dict(ENVIRONMENT)
    if listen_port:
        env |= {"exabgp_tcp_bind": "0.0.0.0 ::", "exabgp_tcp_port": str(listen_port)}
    return namespace.popen([str(PROGRAM), "server", str(path)], name=name, env=env)
