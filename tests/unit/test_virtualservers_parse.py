"""F5 virtual-server ConfigMaps: the article's as written, and everything that can be wrong with one."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bgpd.kube.feed import Feed
from bgpd.kube.objects import read_objects
from bgpd.kube.parse import CONFIG_MAP
from bgpd.model.configmap import ConfigMap
from bgpd.model.policy import Protocol
from bgpd.model.virtualserver import Balance, MonitorProtocol
from bgpd.runtime.store import Store
from bgpd.virtualservers.parse import Reading, parse
from bgpd.virtualservers.pattern import PatternError, pattern

SCHEMA = "f5schemadb://bigip-virtual-server_v0.1.7.json"
ARTICLE = """
    {
      "virtualServer": {
        "backend": {
          "servicePort": 80,
          "serviceName": "nginx-http",
          "healthMonitors": [{
            "interval": 5,
            "protocol": "http",
            "send": "GET /health.html HTTP/1.1\\r\\nHost:11.11.250.12\\r\\n\\r\\n",
            "recv": "server is ok",
            "timeout": 16
          }]
        },
        "frontend": {
          "virtualAddress": {
            "port": 80,
            "bindAddr": "11.16.22.80"
          },
          "partition": "Cilium",
          "balance": "least-connections-member",
          "mode": "http"
        }
      }
    }
"""
MONITOR = "data.data.virtualServer.backend.healthMonitors[0]"
FRONTEND = "data.data.virtualServer.frontend"


def _read(document: Any, schema: str | None = SCHEMA) -> Reading:
    text = document if isinstance(document, str) else json.dumps(document)
    return parse(ConfigMap("default/nginx-vs-http", {"data": text} | ({"schema": schema} if schema else {})))


def _changed(path: str, value: Any) -> dict[str, Any]:
    """The article's document with another value at `path`; None: without it."""
    document: dict[str, Any] = json.loads(ARTICLE)
    place: Any = document["virtualServer"]
    *steps, last = path.split(".")
    for step in steps:
        place = place[int(step) if step.isdigit() else step]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return document


def _faults(reading: Reading) -> list[str]:
    return [str(fault).removeprefix("ConfigMap default/nginx-vs-http: ") for fault in reading.faults]


def _warnings(reading: Reading) -> list[str]:
    return [str(warning).removeprefix("ConfigMap default/nginx-vs-http: ") for warning in reading.warnings]


def test_the_article_with_get() -> None:
    """All of it means something, and nothing of it is odd."""
    reading = _read(ARTICLE)
    assert (reading.faults, reading.warnings) == ((), ())
    server = reading.server
    assert server is not None
    assert (str(server.frontend.address), server.frontend.protocol, server.frontend.port) == (
        "11.16.22.80",
        Protocol.TCP,
        80,
    )
    assert (server.service, server.service_port) == ("default/nginx-http", 80)
    assert server.balance is Balance.LEAST_CONNECTIONS
    (monitor,) = server.monitors
    assert (monitor.protocol, monitor.interval_s, monitor.timeout_s) == (MonitorProtocol.HTTP, 5, 16)
    assert monitor.send == b"GET /health.html HTTP/1.1\r\nHost:11.11.250.12\r\n\r\n"
    assert monitor.recv == "server is ok"


def test_the_article_with_head_passes_on_an_error() -> None:
    """It is taken as written, and the warning says what is wrong with it."""
    monitor = {"interval": 5, "protocol": "http", "send": "HEAD / HTTP/1.1\r\n\r\n", "recv": "Server", "timeout": 16}
    reading = _read(_changed("backend.healthMonitors", [monitor]))
    assert reading.server is not None
    (warning,) = _warnings(reading)
    assert warning.startswith(f"{MONITOR}.send: HEAD in HTTP/1.1 without Host is answered 400")
    assert "it passes on that error" in warning


def test_backslashes_that_are_escaped_once_more() -> None:
    """As k8s-bigip-ctlr's own examples have them, and hexadecimal and octal ones."""
    reading = _read(_changed("backend.healthMonitors.0.send", r"GET / HTTP/1.0\r\n\x41\102\\\r\n\r\n"))
    assert reading.server is not None
    assert reading.server.monitors[0].send == b"GET / HTTP/1.0\r\nAB\\\r\n\r\n"


def test_ipv6_udp_and_defaults() -> None:
    """BIG-IP's interval and timeout; round-robin; an address of the other family."""
    document = _changed("backend.healthMonitors", [{"protocol": "udp", "send": "x", "recv": "y"}])
    frontend = document["virtualServer"]["frontend"]
    frontend |= {"virtualAddress": {"port": 53, "bindAddr": "fd00::53"}, "mode": "udp"}
    del frontend["balance"]
    server = _read(document).server
    assert server is not None
    assert str(server.frontend) == "udp fd00::53 port 53"
    assert (server.monitors[0].interval_s, server.monitors[0].timeout_s) == (5, 16)
    assert server.balance is Balance.ROUND_ROBIN


@pytest.mark.parametrize(
    ("path", "value", "fault"),
    [
        ("backend.serviceName", None, "data.data.virtualServer.backend.serviceName: is missing"),
        ("backend.servicePort", "80", "data.data.virtualServer.backend.servicePort: found '80'; give a whole number"),
        ("backend.healthMonitors.0.protocol", "https", f"{MONITOR}.protocol: found 'https'; give one of http, tcp,"),
        ("backend.healthMonitors.0.intervall", 5, f"{MONITOR}.intervall: is not known; did you mean 'interval'?"),
        ("backend.healthMonitors.0.timeout", 0, f"{MONITOR}.timeout: found 0; give a whole number from 1 to 86400"),
        ("backend.healthMonitors.0.recv", "(", f"{MONITOR}.recv: it is no extended regular expression"),
        ("backend.healthMonitors.0.recv", r"(a)\1", f"{MONITOR}.recv: back references"),
        (
            "backend.healthMonitors",
            [{"protocol": "tcp", "interval": n} for n in range(1, 18)],
            "data.data.virtualServer.backend.healthMonitors: there are 17; a virtual server may have 16 monitors",
        ),
        ("frontend.sslProfile", {"f5ProfileName": "x"}, f"{FRONTEND}.sslProfile: a node does not end TLS"),
        ("frontend.iapp", "x", f"{FRONTEND}.iapp: iApps run on an F5 only"),
        ("frontend.balance", "round-robbin", f"{FRONTEND}.balance: found 'round-robbin'; give one of round-robin,"),
        ("frontend.mode", "sctp", f"{FRONTEND}.mode: found 'sctp'; give one of http, tcp, udp"),
        ("frontend.virtualAddress.bindAddr", None, f"{FRONTEND}.virtualAddress.bindAddr: is missing"),
        ("frontend.virtualAddress.bindAddr", "1.2.3.4%5", f"{FRONTEND}.virtualAddress.bindAddr: '1.2.3.4%5' is not"),
        ("frontend.virtualAddress.bindAddr", "127.0.0.1", f"{FRONTEND}.virtualAddress.bindAddr: found 127.0.0.1"),
    ],
)
def test_one_fault(path: str, value: Any, fault: str) -> None:
    """It is named with its place, and there is no virtual server."""
    reading = _read(_changed(path, value))
    assert reading.server is None
    (found,) = _faults(reading)
    assert found.startswith(fault)


@pytest.mark.parametrize(
    "path",
    [
        "backend",
        "backend.serviceName",
        "backend.healthMonitors.0",
        "backend.healthMonitors.0.interval",
        "backend.healthMonitors.0.recv",
        "frontend.mode",
        "frontend.virtualAddress.port",
    ],
)
def test_null_is_a_fault(path: str) -> None:
    """A monitor that is not understood must not be one that always passes."""
    document: Any = json.loads(ARTICLE)
    place = document["virtualServer"]
    *steps, last = [int(step) if step.isdigit() else step for step in path.split(".")]
    for step in steps:
        place = place[step]
    place[last] = None
    reading = _read(document)
    assert reading.server is None
    named = f"data.data.virtualServer.{path.replace('.0', '[0]')}: found nothing; give "
    assert [each.startswith(named) for each in _faults(reading)] == [True]


def test_all_faults_at_once() -> None:
    """In the backend, the frontend and beside the document."""
    document = _changed("backend.servicePort", 0)
    document["virtualServer"]["frontend"]["virtualAddress"] = {"bindAddr": "x", "port": 80}
    found = _faults(_read(document, schema="f5schemadb://bigip-pool_v0.1.0.json"))
    assert [each.partition(":")[0] for each in found] == [
        "data.data.virtualServer.backend.servicePort",
        f"{FRONTEND}.virtualAddress.bindAddr",
        "data.schema",
    ]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ('{"virtualServer": ', "data.data: line 1, column 19: it is not JSON: expecting value"),
        ("[]", "data.data: found a list; give a mapping with virtualServer"),
        ('{"virtualServer": NaN}', "data.data: it is not JSON that can be read: NaN is no number"),
        ("[" * 10_000, "data.data: it is not JSON that can be read"),
        ("{}", "data.data.virtualServer: is missing"),
        (json.dumps({f"k{n}": 1 for n in range(4000)}), "data.data: it has 4"),
        ("null", "data.data: found nothing; give a mapping with virtualServer"),
        (ARTICLE.replace("server is ok", r"\ud800"), "data.data: it is not JSON that can be read: 'utf-8' codec"),
        (ARTICLE.replace('"port"', r'"\ud800": 1, "port"'), "data.data: it is not JSON that can be read: 'utf-8'"),
    ],
)
def test_what_is_no_document(text: str, fault: str) -> None:
    """Whatever stands there, the answer is a fault."""
    assert _faults(_read(text))[0].startswith(fault)


def test_a_key_that_is_there_twice() -> None:
    """JSON would let the last one win."""
    assert "data.data: 'port' is there twice in one mapping; remove one" in _faults(
        _read(ARTICLE.replace('"port": 80,', '"port": 80, "port": 81,'))
    )


@pytest.mark.parametrize(
    ("path", "value", "warning"),
    [
        ("backend.healthMonitors.0.timeout", 5, f"{MONITOR}.timeout: one failed try takes a pod out"),
        ("backend.healthMonitors.0.recv", "HTTP/1", f"{MONITOR}.recv: it passes on errors too"),
        ("backend.healthMonitors.0.send", "GET / HTTP/1.0\r\n", f"{MONITOR}.send: the request has no end"),
        ("backend.healthMonitors", [], "data.data.virtualServer.backend: there is no health monitor"),
        ("frontend.balance", "ratio-member", f"{FRONTEND}.balance: ratio-member is not supported here"),
        (
            "frontend.sourceAddressTranslation",
            {"type": "automap"},
            f"{FRONTEND}.sourceAddressTranslation: is not done",
        ),
    ],
)
def test_one_warning(path: str, value: Any, warning: str) -> None:
    """It is served all the same."""
    reading = _read(_changed(path, value))
    assert reading.server is not None
    (found,) = _warnings(reading)
    assert found.startswith(warning)


@pytest.mark.parametrize(
    ("text", "answer", "found"),
    [
        ("ok", b"it is ok", True),
        ("a.c", b"a\nc", True),
        ("HTTP/1\\.[01] (200|204) ", b"HTTP/1.1 204 No Content", True),
        ("^ok$", b"ok", True),
        ("x|y", b"\0\0y", True),
        ("ok", b"OK", False),
        (r"\{\"status\"", b'{"status": 1}', True),
        ("[]a-c^-]+$", b"x]-^b", True),
        ("^[^[:space:]]+$", b"a b", False),
        ("^(a|bc)*d?$", b"abcabcd", True),
        ("^a+?$", b"", True),
        ("caf\u00e9*!", "caf\u00e9\u00e9!".encode(), True),
        ("a.b", b"a\0b", False),
        ("()|x", b"y", True),
        ("^a{2,3}$", b"aaaa", False),
        ("^a{,2}$", b"aa", True),
        ('{"status"', b'{"status": 1}', True),
        (r"^[\d]$", b"\\", True),
        (r"^\d\_$", b"d_", True),
        ("^a[^b]c$", b"a\nc", True),
        ("^b", b"a\nb", False),
        (r"^\s\S\w\W$", b"\v-_\xff", True),
        ("^caf\u00e9$", "caf\u00e9".encode("latin-1"), False),
    ],
)
def test_patterns(text: str, answer: bytes, found: bool) -> None:
    """As BIG-IP matches them: anywhere, with care about case, past zero bytes."""
    assert pattern(text).found_in(answer) is found


TREES = st.recursive(
    st.sampled_from(["a", "b", ".", "[ab]", "[^a]", "^", "$", r"\.", r"\w"]),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from("*+?")).map(lambda it: f"({it[0]}){it[1]}"),
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, inner).map(lambda it: f"({it[0]}|{it[1]})"),
    ),
    max_leaves=8,
)


@given(TREES, st.text("ab.c\n", min_size=1, max_size=10).map(str.encode))
def test_patterns_find_what_others_find(text: str, answer: bytes) -> None:
    """Python's `re`, where it means the same."""
    expected = re.search(text.replace("$", r"\Z").encode(), answer, re.DOTALL) is not None
    assert pattern(text).found_in(answer) is expected


@pytest.mark.parametrize(
    "text",
    [
        "(" * 80 + "a" + "+)" * 80,
        "(^|$|a)" * 30,
        "(.*.*a)" * 30,
        "a" + "+" * 250,
        "(a|b)*a" + "(a|b)" * 40,
        "(a|b)*a(a|b){200}",
    ],
)
def test_no_pattern_takes_long(text: str) -> None:
    """Each takes other engines hours, or all memory: what is asserted is that this ends."""
    assert not pattern(f"{text}!").found_in(b"ab" * 100 + b"a" * 4900)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("a{1001}", "it is no extended regular expression: invalid repetition size: {1001}; put"),
        ("(.{100}){10}" * 20, "it is no extended regular expression: it takes more than 32 KiB; repeat less"),
        ("[", "it is no extended regular expression: missing ]"),
        ("*" * 256, "it has 256 characters; a regular expression may have 255"),
        ("(\0)", "a zero byte cannot be looked for"),
        ("(", "it is no extended regular expression: missing )"),
        ("a)", "it is no extended regular expression: unexpected )"),
        ("+a", "it is no extended regular expression: no argument for repetition operator: +"),
        ("[b-a]", "it is no extended regular expression: invalid character class range: b-a"),
        ("[[:x:]]", "it is no extended regular expression: invalid character class range: [:x:]"),
        ("[[:^alpha:]]", "it is no extended regular expression: there is no such class"),
        ("[[.a.]]", "collating elements are not supported"),
        ("[\u00e9]", "other than ASCII characters in [] are not supported; write (x|y)"),
        (r"\b", r"word boundaries (\b) are not supported"),
        (r"\<a", r"word boundaries (\<) are not supported"),
        ("a\\", "it is no extended regular expression: trailing \\"),
    ],
)
def test_patterns_that_are_refused(text: str, why: str) -> None:
    """Rather than be slow, or mean something else; what is wrong and what helps is said."""
    with pytest.raises(PatternError) as caught:
        pattern(text)
    assert str(caught.value).startswith(why)


MANIFEST = """\
kind: List
apiVersion: v1
items:
- kind: ConfigMap
  apiVersion: v1
  metadata: {name: vs, namespace: shop, labels: {f5type: virtual-server}}
  data:
    schema: f5schemadb://bigip-virtual-server_v0.1.2.json
    data: |
      {"virtualServer": {"backend": {"serviceName": "web", "servicePort": 80}}}
- kind: ConfigMap
  apiVersion: v1
  metadata: {name: empty, namespace: shop, labels: {f5type: virtual-server}}
  data: {}
"""


def test_of_a_manifest_file_and_line_are_told() -> None:
    """Where the key of `data` stands that holds it, or `data` for one that is missing; moved, it is told anew."""

    def told(manifest: str) -> list[str]:
        found = read_objects(manifest.encode(), "/m/shop.yaml", [Feed(CONFIG_MAP, Store({}))]).found
        readings = [parse(each.value) for each in found]
        return [str(each) for reading in readings for each in (*reading.warnings, *reading.faults)]

    at = "/m/shop.yaml"
    assert told(MANIFEST) == [
        f"{at}:8:5: data.schema: ConfigMap shop/vs: v0.1.2 is read as v0.1.7",
        f"{at}:9:5: data.data.virtualServer.backend: ConfigMap shop/vs: there is no health monitor: a pod counts as "
        "healthy while Kubernetes calls it ready",
        f"{at}:9:5: data.data.virtualServer.frontend: ConfigMap shop/vs: is missing",
        f"{at}:14:3: data.data: ConfigMap shop/empty: is missing; put the JSON document "
        '{"virtualServer": ...} there',
        f"{at}:14:3: data.schema: ConfigMap shop/empty: is missing; only virtual servers are read: write {SCHEMA}",
    ]
    assert told("# one line more\n" + MANIFEST)[0].startswith(f"{at}:9:5: ")
