"""A pod's interface as CNI tells of it: what an ADD brings, a DEL takes away and a restart of bgpd finds again."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from bgpd.model.prefix import Address

READ_BY_RUNTIMES = (".conf", ".conflist", ".json")  # how the names of configurations end there; libcni
OWN_FILE = "05-bgpd.conflist"  # the chain with our plugin in it, in the container runtime's directory


class InterfaceKind(StrEnum):
    """What a pod's interface is in the kernel, as far as traffic of it can be judged."""

    VETH = "veth"
    MACVLAN = "macvlan"
    IPVLAN = "ipvlan"


class ChainingMode(StrEnum):
    """What the plugin is chained to, by the names that Cilium and its derivatives gave it."""

    AUTO = "auto"
    GENERIC_VETH = "generic-veth"
    MACVLAN = "macvlan"
    IPVLAN = "ipvlan"
    CBR0 = "cbr0"
    PORTMAP = "portmap"
    TERWAY_CHAINER = "terway-chainer"
    SPIDERNET_CHAINER = "spidernet-chainer"

    @property
    def kind(self) -> InterfaceKind | None:
        """What the pod's interface must then be. None: whatever the previous result shows.

        cbr0 is Flannel's network, portmap comes behind a bridge; Terway and Spiderpool make veth, macvlan and
        ipvlan interfaces alike.
        """
        match self:
            case ChainingMode.GENERIC_VETH | ChainingMode.CBR0 | ChainingMode.PORTMAP:
                return InterfaceKind.VETH
            case ChainingMode.MACVLAN:
                return InterfaceKind.MACVLAN
            case ChainingMode.IPVLAN:
                return InterfaceKind.IPVLAN
        return None


NAMED = (ChainingMode.TERWAY_CHAINER, ChainingMode.SPIDERNET_CHAINER)
"""Those whose networks must have the mode's name, as cilium-chaining has it."""


@dataclass(frozen=True, slots=True, order=True)
class AttachmentKey:
    """What identifies an attachment (CNI specification, section 2, "Lifecycle & Ordering")."""

    network: str
    container: str
    interface: str

    def __str__(self) -> str:
        return f"{self.network},{self.container},{self.interface}"


@dataclass(frozen=True, slots=True)
class PodName:
    """The pod as the runtime names it in CNI_ARGS. `uid` is empty when it does not tell."""

    namespace: str
    name: str
    uid: str = ""

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class Attachment:
    """One interface of one pod.

    `netns` is a path in the mount namespace of the runtime. `mac` is empty when the previous result does not tell.
    `host_interfaces` are those that the chain made on the node, in the order of the result; a hint, for many plugins
    leave them out. `pod` None: whoever made the ADD is no kubelet.
    """

    key: AttachmentKey
    netns: str
    pod: PodName | None
    mode: ChainingMode
    mac: str
    addresses: tuple[Address, ...]
    host_interfaces: tuple[str, ...]
