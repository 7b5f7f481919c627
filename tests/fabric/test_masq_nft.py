"""The masquerade table with real packets: who is seen by whom, before, during and after a change.

pods, the node and the outside are namespaces; the program and the maps are the shipped ones. See `masq_node` for the
wiring. Every test that has a `plan` runs once per family.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from bgpd.masq.table import KEY, TABLES, side
from bgpd.model.outcome import DONE, Retry
from bgpd.netlink.nftables import Watch
from bgpd.netlink.owntables import TableActuator
from bgpd.runtime.diff import Change
from bgpd.runtime.reconcile import Desired, Reconciler, Round
from tests.fabric.masq_node import (
    NETLINK_NETFILTER,
    PLANS,
    MasqNode,
    Plan,
    datagram_seen,
    echo_request_seen,
    echoed,
    speaks,
    tcp_stream,
    udp_client,
    udp_echo,
)
from tests.fabric.netns import Lab, Namespace
from tests.fabric.process import poll
from tests.fabric.reach import ping, source_seen

pytestmark = pytest.mark.needs("nft", "mount")
both_families = pytest.mark.parametrize("plan", PLANS, ids=["ipv4", "ipv6"])


@pytest.fixture
def masq(lab: Lab, bpffs: Path) -> Iterator[MasqNode]:
    """The node with its table, one address of the outside in the list."""
    made = MasqNode(lab, bpffs)
    with contextlib.closing(made):
        assert made.apply() == DONE
        yield made


def pods(masq: MasqNode, plan: Plan) -> list[tuple[Namespace, str]]:
    """One on the bridge, one on a cable of its own."""
    return [(masq.pod_a, plan.pod_a), (masq.pod_c, plan.pod_c)]


# --- who is seen ----------------------------------------------------------------------------------------------------


@both_families
def test_a_listed_destination_sees_the_pod_and_another_the_node(masq: MasqNode, plan: Plan) -> None:
    for pod, address in pods(masq, plan):
        assert source_seen(pod, masq.outside, plan.listed) == address
        assert source_seen(pod, masq.outside, plan.unlisted) == plan.node
        assert datagram_seen(pod, masq.outside, plan.listed) == address
        assert datagram_seen(pod, masq.outside, plan.unlisted) == plan.node


@both_families
def test_echo_requests_are_answered_whatever_address_they_leave_with(masq: MasqNode, plan: Plan) -> None:
    assert echo_request_seen(masq.pod_a, masq.outside, plan.listed) == plan.pod_a
    assert echo_request_seen(masq.pod_a, masq.outside, plan.unlisted) == plan.node


@both_families
def test_pods_of_the_cluster_and_the_node_see_the_pod(masq: MasqNode, plan: Plan) -> None:
    assert source_seen(masq.pod_a, masq.outside, plan.remote_pod) == plan.pod_a
    assert source_seen(masq.pod_a, masq.pod_b, plan.pod_b) == plan.pod_a
    for address in (plan.node, plan.loopback, plan.bridge.partition("/")[0]):
        assert source_seen(masq.pod_a, masq.node, address) == plan.pod_a


@both_families
def test_connections_that_come_in_are_not_touched(masq: MasqNode, plan: Plan) -> None:
    """The far ends are not in the list: only a reply that kept its address is taken for one."""
    assert source_seen(masq.outside, masq.pod_a, plan.pod_a, source=plan.unlisted) == plan.unlisted
    with udp_echo(masq.pod_a, plan.pod_a) as seen, contextlib.ExitStack() as stack:
        dialer = stack.enter_context(contextlib.closing(masq.outside.socket(plan.family, socket.SOCK_DGRAM)))
        dialer.bind((plan.unlisted, 0))
        dialer.settimeout(2.0)
        dialer.connect((plan.pod_a, 7007))
        assert echoed(dialer) == b"x"
    assert seen == [(plan.unlisted, dialer_port(seen))]
    assert ping(masq.outside, plan.pod_a, source=plan.unlisted)


def dialer_port(seen: list[tuple[str, int]]) -> int:
    return seen[0][1]


@both_families
def test_what_the_node_sends_itself_is_left_alone(masq: MasqNode, plan: Plan) -> None:
    assert source_seen(masq.node, masq.outside, plan.unlisted, source=plan.loopback) == plan.loopback


@both_families
def test_a_fixed_address_is_used_where_one_is_configured(masq: MasqNode, plan: Plan) -> None:
    table = masq.wanted()
    name = f"ipv{plan.version}"
    fixed = replace(getattr(table, name), snat_to=ip_address(plan.loopback))
    assert masq.apply(replace(table, **{name: fixed})) == DONE
    assert source_seen(masq.pod_a, masq.outside, plan.unlisted) == plan.loopback
    assert source_seen(masq.pod_a, masq.outside, plan.listed) == plan.pod_a


@both_families
def test_a_family_without_a_side_is_left_alone(masq: MasqNode, plan: Plan) -> None:
    assert masq.apply(masq.wanted(**{f"ipv{plan.version}": None})) == DONE
    assert source_seen(masq.pod_a, masq.outside, plan.unlisted) == plan.pod_a


# --- packets that are hard ------------------------------------------------------------------------------------------


@both_families
def test_errors_find_their_way_back_to_the_pod(masq: MasqNode, plan: Plan) -> None:
    """Nobody listens: the outside's ICMP error is about the node's address, and the pod is told all the same."""
    for destination in (plan.listed, plan.unlisted):
        with udp_client(masq.pod_a, destination, port=9) as dialer:
            dialer.send(b"x")
            with pytest.raises(ConnectionRefusedError):
                dialer.recv(1)


@both_families
def test_a_smaller_mtu_behind_the_node_is_learnt_by_the_pod(masq: MasqNode, plan: Plan) -> None:
    """The node answers "too big" itself, to the pod's own packet, while the translated one would have left."""
    masq.node.ip("link set eth0 mtu 1400")
    masq.outside.ip("link set eth0 mtu 1400")
    with udp_echo(masq.outside, plan.unlisted) as seen, udp_client(masq.pod_a, plan.unlisted) as dialer:
        dialer.setsockopt(*((0, 10, 2) if plan.version == 4 else (41, 23, 2)))  # MTU_DISCOVER: DO
        dialer.send(bytes(1440))
        with pytest.raises(OSError, match="too long"):
            for _ in range(100):
                dialer.send(bytes(1440))
                time.sleep(0.01)
        dialer.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)  # told once more for each that was sent
        assert echoed(dialer, bytes(1300)) == bytes(1300)
    assert {each for each, _ in seen} == {plan.node}


@both_families
def test_fragments_go_the_way_of_the_first_one(masq: MasqNode, plan: Plan) -> None:
    data = bytes(5000)
    for destination, expected in ((plan.listed, plan.pod_a), (plan.unlisted, plan.node)):
        with udp_echo(masq.outside, destination) as seen, udp_client(masq.pod_a, destination) as dialer:
            assert echoed(dialer, data) == data
        assert [each for each, _ in seen] == [expected]


@both_families
def test_two_pods_may_use_one_port_towards_one_destination(masq: MasqNode, plan: Plan) -> None:
    with udp_echo(masq.outside, plan.unlisted) as seen, contextlib.ExitStack() as stack:
        for pod, address in ((masq.pod_a, plan.pod_a), (masq.pod_b, plan.pod_b)):
            dialer = stack.enter_context(contextlib.closing(pod.socket(plan.family, socket.SOCK_DGRAM)))
            dialer.bind((address, 5353))
            dialer.settimeout(2.0)
            dialer.connect((plan.unlisted, 7007))
            assert echoed(dialer, address.encode()) == address.encode()
    assert [each for each, _ in seen] == [plan.node, plan.node]
    assert len({port for _, port in seen}) == 2


# --- once per flow --------------------------------------------------------------------------------------------------


@both_families
def test_editing_the_list_changes_new_flows_only(masq: MasqNode, plan: Plan) -> None:
    length = ip_address(plan.listed).max_prefixlen
    with contextlib.ExitStack() as stack:
        kept = stack.enter_context(tcp_stream(masq.pod_a, masq.outside, plan.listed))
        hidden = stack.enter_context(tcp_stream(masq.pod_a, masq.outside, plan.unlisted))
        seen = stack.enter_context(udp_echo(masq.outside, plan.unlisted))
        flow = stack.enter_context(udp_client(masq.pod_a, plan.unlisted))
        echoed(flow)
        masq.list(f"{plan.unlisted}/{length}")  # the other way round
        for _ in range(3):
            assert speaks(*kept)
            assert speaks(*hidden)
            echoed(flow)
        assert (kept[1].getpeername()[0], hidden[1].getpeername()[0]) == (plan.pod_a, plan.node)
        assert len(set(seen)) == 1
        assert seen[0][0] == plan.node
        assert source_seen(masq.pod_a, masq.outside, plan.listed) == plan.node
        assert source_seen(masq.pod_a, masq.outside, plan.unlisted) == plan.pod_a


@both_families
def test_no_change_of_the_table_lets_a_flow_slip_through(masq: MasqNode, plan: Plan) -> None:
    """New flows come all the while the program and the prefixes of the cluster change, and daemons take over from
    each other; each of the flows is answered, and translated.
    """
    over = threading.Event()
    changes = 0

    def change() -> None:
        nonlocal changes
        table = masq.wanted()
        sides = [
            side(each.pods, [*each.kept, ip_network("172.16.0.0/12" if each is table.ipv4 else "fd77::/16")], None)
            for each in (table.ipv4, table.ipv6)
            if each is not None
        ]
        while not over.is_set():
            changes += 1
            if changes % 4 == 0:  # the daemon ends, and the next one adopts what it leaves
                masq.connection.close()
                masq.connection = masq.connect()
            wanted = replace(table, program_id=changes)
            masq.apply(replace(wanted, ipv4=sides[0], ipv6=sides[1]) if changes % 2 else wanted)

    with (
        tcp_stream(masq.pod_a, masq.outside, plan.unlisted) as stream,
        udp_echo(masq.outside, plan.unlisted) as seen,
    ):
        changer = threading.Thread(target=change)
        changer.start()
        try:
            for _ in range(1000):
                with udp_client(masq.pod_a, plan.unlisted) as dialer:
                    echoed(dialer)
            assert speaks(*stream)
        finally:
            over.set()
            changer.join()
    assert changes > 10
    assert {each for each, _ in seen} == {plan.node}


@both_families
def test_connections_older_than_the_table_go_on(lab: Lab, plan: Plan, masq: MasqNode) -> None:
    """Without a table there is no conntrack either. What comes first after that is no SYN, and is left alone."""
    masq.remove()
    assert masq.nft("list ruleset").stdout == ""
    with (
        tcp_stream(masq.outside, masq.pod_a, plan.pod_a) as came_in,
        tcp_stream(masq.pod_a, masq.outside, plan.unlisted) as went_out,
    ):
        assert went_out[1].getpeername()[0] == plan.pod_a
        assert masq.apply() == DONE
        for client, server in (came_in, went_out):
            assert speaks(server, client)
        assert source_seen(masq.pod_a, masq.outside, plan.unlisted) == plan.node


# --- beside others --------------------------------------------------------------------------------------------------


@both_families
def test_a_masquerade_of_the_main_plugin_does_not_take_the_address_away(masq: MasqNode, plan: Plan) -> None:
    """As `flannel --ip-masq` and `ipMasq` of bridge and ptp do it, at the usual priority."""
    family = "ip" if plan.version == 4 else "ip6"
    script = f"table {family} flannel {{ chain post {{ type nat hook postrouting priority srcnat;"
    script += f" {family} saddr {plan.pods} oifname eth0 masquerade\n }}\n }}\n"
    assert masq.nft(script).returncode == 0
    assert source_seen(masq.pod_a, masq.outside, plan.listed) == plan.pod_a
    assert source_seen(masq.pod_a, masq.outside, plan.remote_pod) == plan.pod_a
    assert source_seen(masq.pod_a, masq.outside, plan.unlisted) == plan.node


def service(masq: MasqNode, plan: Plan, endpoint: str, *, masqueraded: str = "") -> str:
    """What kube-proxy does for a service of one endpoint; its address. `masqueraded`: whom it marks for that.

    The last rule is that of its IPVS mode, which does without a mark.
    """
    family, virtual = ("ip", "10.96.0.10") if plan.version == 4 else ("ip6", "fd96::10")
    to = f"{endpoint}:8080" if plan.version == 4 else f"[{endpoint}]:8080"
    mark = f"{family} saddr {masqueraded} {family} daddr {virtual} meta mark set 0x4000" if masqueraded else ""
    script = f"""
table {family} kube-proxy {{
    chain services {{ type nat hook prerouting priority dstnat;
        {mark}
        {family} daddr {virtual} tcp dport 8080 dnat to {to}
    }}
    chain postrouting {{ type nat hook postrouting priority srcnat;
        meta mark & 0x4000 == 0x4000 masquerade fully-random
        {family} saddr {endpoint} {family} daddr {endpoint} masquerade
    }}
}}
"""
    made = masq.nft(script)
    assert made.returncode == 0, made.stderr
    return virtual


@both_families
def test_a_service_goes_by_the_address_of_its_endpoint(masq: MasqNode, plan: Plan) -> None:
    """The list has endpoints, not cluster addresses, which never leave the node."""
    for endpoint, expected in ((plan.listed, plan.pod_a), (plan.unlisted, plan.node)):
        virtual = service(masq, plan, endpoint)
        assert seen_through(masq.pod_a, virtual, masq.outside, endpoint) == expected
        masq.nft(f"delete table {'ip' if plan.version == 4 else 'ip6'} kube-proxy")


@pytest.mark.parametrize("marks", [True, False], ids=["iptables", "ipvs"])
@both_families
def test_a_pod_reaches_itself_through_a_service(masq: MasqNode, plan: Plan, marks: bool) -> None:
    """kube-proxy has to masquerade that: a pod would not take a packet from itself."""
    virtual = service(masq, plan, plan.pod_a, masqueraded=plan.pod_a if marks else "")
    masq.node.ip("link set port-a type bridge_slave hairpin on")
    assert seen_through(masq.pod_a, virtual, masq.pod_a, plan.pod_a) == plan.bridge.partition("/")[0]


@both_families
def test_what_kube_proxy_masquerades_is_left_to_it(masq: MasqNode, plan: Plan) -> None:
    """As with `masqueradeAll`; without its mark another pod of the cluster sees the pod."""
    virtual = service(masq, plan, plan.remote_pod, masqueraded=plan.pod_a)
    assert seen_through(masq.pod_a, virtual, masq.outside, plan.remote_pod) == plan.node
    assert seen_through(masq.pod_b, virtual, masq.outside, plan.remote_pod) == plan.pod_b


def seen_through(client: Namespace, virtual: str, server: Namespace, endpoint: str) -> str | None:
    """Dial `virtual`; the source that `endpoint` saw."""
    family = socket.AF_INET6 if ":" in virtual else socket.AF_INET
    with (
        contextlib.closing(server.socket(family, socket.SOCK_STREAM)) as listener,
        contextlib.closing(client.socket(family, socket.SOCK_STREAM)) as dialer,
    ):
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((endpoint, 8080))
        listener.listen(1)
        for each in (listener, dialer):
            each.settimeout(2.0)
        try:
            dialer.connect((virtual, 8080))
            accepted, seen = listener.accept()
        except OSError:
            return None
        accepted.close()
        return str(seen[0])


def test_tables_of_others_stay_as_they_are(masq: MasqNode) -> None:
    chain = "\tchain post {\n\t\ttype nat hook postrouting priority srcnat; policy accept;\n\t}\n"
    others = f"table inet theirs {{\n{chain}}}\n"
    assert masq.nft(others).returncode == 0
    masq.apply(replace(masq.wanted(), program_id=2))
    masq.remove()
    assert masq.node.run(["nft", "list", "ruleset"]).stdout == others


# --- what is there --------------------------------------------------------------------------------------------------


def test_what_was_applied_is_what_is_observed(masq: MasqNode) -> None:
    """In both families, with one side, with fixed addresses, with prefixes that touch and overlap, and many."""
    wanted = masq.wanted()
    touching = side(
        [ip_network("10.244.1.0/24"), ip_network("10.244.2.0/23"), ip_network("10.244.1.128/25")],
        [ip_network("0.0.0.0/1"), *(ip_network((0x64400000 + 512 * i, 24)) for i in range(2000))],
        ip_address("192.0.2.100"),
    )
    for table in (
        wanted,
        replace(wanted, ipv4=None),
        replace(wanted, ipv6=None, program_id=77),
        replace(wanted, ipv4=touching),
    ):
        for _ in range(2):
            assert masq.apply(table) == DONE
            assert masq.observe() == table


def test_without_the_program_the_old_table_stays_and_the_reason_names_the_pin(masq: MasqNode) -> None:
    before = masq.observe()
    outcome = masq.apply(replace(masq.wanted(), program="/sys/fs/bpf/nowhere", program_id=2))
    assert isinstance(outcome, Retry)
    assert "/sys/fs/bpf/nowhere" in outcome.reason
    assert masq.observe() == before


@pytest.mark.parametrize(
    ("edit", "damage"),
    [
        ("flush chain inet bgpd decide4", "chain decide4 has 0 rules, not 5"),
        ("insert rule inet bgpd postrouting accept", "chain postrouting has 3 rules, not 2"),
        ("add chain inet bgpd more", "its chains are"),
        ("add set inet bgpd more { type mark; }", "its sets are"),
        ("flush chain inet bgpd decide6; flush chain inet bgpd keep6", "chain decide6 has 0 rules, not 5"),
        ("add element inet bgpd kept4 { 8.8.8.8 }", ""),
        ("delete element inet bgpd pods4 { 10.244.1.0/24 }", ""),
    ],
)
def test_an_edit_of_somebody_else_is_seen_and_put_right(masq: MasqNode, edit: str, damage: str) -> None:
    unowned(masq)
    edited = masq.nft(edit.replace("; ", "\n"))
    assert edited.returncode == 0, edited.stderr
    found = masq.observe()
    assert found is not None
    assert found != masq.wanted()
    assert damage in found.damage
    assert masq.apply() == DONE
    assert masq.observe() == masq.wanted()


def unowned(masq: MasqNode) -> None:
    """As on a kernel that knows no owners."""
    masq.remove()
    masq.owned = False
    assert masq.apply() == DONE


# --- flushed --------------------------------------------------------------------------------------------------------


@both_families
def test_an_owned_table_outlasts_a_flush_and_its_owner(masq: MasqNode, plan: Plan) -> None:
    if not masq.owned:
        pytest.skip("this kernel knows no owned tables that persist (Linux 6.9)")
    assert masq.nft("flush ruleset").returncode == 0
    assert "Operation not permitted" in masq.nft("delete table inet bgpd").stderr
    assert masq.observe() == masq.wanted()
    masq.connection.close()  # the daemon is killed
    assert source_seen(masq.pod_a, masq.outside, plan.unlisted) == plan.node
    masq.connection = masq.connect()
    found = masq.observe()
    assert found is not None
    assert found.damage == "the table belongs to nobody"
    assert masq.apply() == DONE
    assert masq.observe() == masq.wanted()


def test_a_second_daemon_is_told_who_has_the_table(masq: MasqNode) -> None:
    if not masq.owned:
        pytest.skip("this kernel knows no owned tables that persist (Linux 6.9)")
    with contextlib.closing(masq.connect()) as second:
        table = TableActuator(second, TABLES, owned=True)
        found = asyncio.run(table.observe())[KEY]
        (outcome,) = asyncio.run(table.apply([Change(KEY, masq.wanted(), None)]))
    assert found.damage == f"the table belongs to process {masq.connection.port}"
    assert isinstance(outcome, Retry)
    assert "another bgpd" in outcome.reason
    assert masq.observe() == masq.wanted()


@both_families
def test_a_flush_is_noticed_and_repaired_long_before_the_next_resync(masq: MasqNode, plan: Plan) -> None:
    """Where nobody owns tables. Streams go on, and the next flow is translated again."""
    unowned(masq)

    async def flush_and_repair() -> int:
        repairs: list[int] = []

        def report(seen: Round) -> None:
            repairs.append(seen.added + seen.updated)

        desired = Desired({KEY: masq.wanted()}, complete=True)
        table = masq.table()
        reconciler = Reconciler("masq", lambda: desired, table, str, report, resync_s=lambda: 3600.0)
        watch = Watch(masq.node.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER))
        loop = asyncio.get_running_loop()
        loop.add_reader(watch, lambda: watch.others(masq.connection.port) and reconciler.kick(stale=True))
        running = asyncio.create_task(reconciler.run())
        try:
            assert await reconciler.wait_until(reconciler.kick(), 5.0)
            for command in ("flush ruleset", "delete table inet bgpd", "flush chain inet bgpd postrouting"):
                await asyncio.to_thread(damage_and_await, masq, command)
        finally:
            running.cancel()
            loop.remove_reader(watch)
            watch.close()
        return sum(repairs)

    with tcp_stream(masq.pod_a, masq.outside, plan.unlisted) as stream:
        assert asyncio.run(flush_and_repair()) == 3
        assert speaks(*stream)
        assert stream[1].getpeername()[0] == plan.node
    assert source_seen(masq.pod_a, masq.outside, plan.unlisted) == plan.node


def damage_and_await(masq: MasqNode, command: str) -> None:
    """Returns when somebody has put right what `command` did."""
    done = masq.nft(command)
    assert done.returncode == 0, done.stderr
    poll(lambda: masq.shown() == masq.wanted(), 5.0, lambda: f"not repaired: {command}")
