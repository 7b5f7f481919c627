"""What may be announced besides the node's pod CIDRs: addresses of services, virtual servers and single pods.

Values only. Who finds them knows nothing of peers; which of them go to whom, and how, is up to `bgp.plan`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from bgpd.model.bgp import AdvertisementType
from bgpd.model.prefix import Prefix


@dataclass(frozen=True, slots=True)
class Candidate:
    """One prefix, and of what it is: `owner` as an operator calls it (`Service shop/web`).

    `labels` and `kind` (of a service: which of its addresses) are what an advertisement selects by. `withheld` is
    why it is not to be announced now; empty when it is. `remark` is what an operator should know of one that is
    announced all the same; empty as a rule. `med` and `communities` come on top of what the advertisement
    says: a value of its own replaces the MED, communities are added. `local`: some nodes only are to draw traffic for
    it, so that no aggregate may stand for it.
    """

    type: AdvertisementType
    prefix: Prefix
    owner: str
    labels: Mapping[str, str] = field(default_factory=dict)
    kind: str = ""
    withheld: str = ""
    remark: str = ""
    med: int | None = None
    communities: tuple[str, ...] = ()
    local: bool = False
