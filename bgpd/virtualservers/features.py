"""What virtual servers take of the kernel, found out by doing it once. Leaves nothing behind.

Decides nothing: whoever needs a thing tries it and says so when it fails.
"""

from __future__ import annotations

import contextlib
from ipaddress import ip_address

from bgpd.model.policy import Protocol
from bgpd.model.virtualserver import Frontend, Member
from bgpd.netlink import nftmessage as nft
from bgpd.netlink.conntrack import Conntrack
from bgpd.netlink.nftables import Connection
from bgpd.virtualservers.table import NAME, SLOTS, Table, update

NAT_REMEDY = (
    "it takes CAP_NET_ADMIN and NAT in nf_tables: modprobe -a nft_chain_nat nft_nat nft_masq nft_numgen nft_ct "
    "nft_reject_inet (CONFIG_NFT_NAT, _MASQ, _NUMGEN, _CT, _REJECT_INET)"
)
CONNTRACK_REMEDY = "modprobe nf_conntrack_netlink (CONFIG_NF_CT_NETLINK), and CAP_NET_ADMIN"

_PROBE = "bgpd-probe"
_NOWHERE = tuple(map(ip_address, ("192.0.2.1", "2001:db8::1")))  # for documentation: RFC 5737, RFC 3849
_PORT = 9  # discard


def try_nat(connection: Connection) -> None:
    """One table with a virtual server of each family, as `table` makes it: there and gone in one transaction.

    Under another name, for the real one may be in use. NftablesError: what the kernel has not, or refuses.
    """
    served = {Frontend(each, Protocol.TCP, _PORT): (Member(each, _PORT),) * SLOTS for each in _NOWHERE}
    messages = (nft.renamed(each, NAME, _PROBE) for each in update(Table(None), Table(served)))
    connection.commit([nft.table(_PROBE, 0), *messages, nft.no_table(_PROBE)])


def try_conntrack() -> None:
    """Asks for flows that nobody has, of each family. OSError: connection tracking cannot be asked."""
    with contextlib.closing(Conntrack()) as conntrack:
        for each in _NOWHERE:
            conntrack.flows(each, Protocol.TCP, _PORT)
