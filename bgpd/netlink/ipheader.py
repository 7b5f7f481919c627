"""Where the addresses of a packet stand, in the words of nf_tables, for either IP version. Values only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from bgpd.netlink import nftmessage as nft
from bgpd.netlink.nftfilter import KeyType
from bgpd.netlink.nftmessage import Compare, Header, Meta


@dataclass(frozen=True, slots=True)
class IpHeader:
    """Of one version (RFC 791 section 3.1, RFC 8200 section 3). `width`: bytes of an address.

    A table derives from it how its own objects of that family are called.
    """

    version: int
    nfproto: int
    width: int
    source_at: int
    destination_at: int
    address_type: KeyType

    @classmethod
    def of(cls, version: int) -> Self:
        if version == 4:
            return cls(4, nft.NFPROTO_IPV4, 4, 12, 16, KeyType.IPV4_ADDR)
        return cls(6, nft.NFPROTO_IPV6, 16, 8, 24, KeyType.IPV6_ADDR)

    @property
    def source(self) -> tuple[Header, int, int]:
        return Header.NETWORK, self.source_at, self.width

    @property
    def destination(self) -> tuple[Header, int, int]:
        return Header.NETWORK, self.destination_at, self.width

    @property
    def is_family(self) -> tuple[bytes, ...]:
        """In a table of the family `inet`, which sees both."""
        return nft.meta(Meta.NFPROTO), nft.compare(Compare.EQUAL, bytes([self.nfproto]))
