"""YAML to values with places: what is read, what is refused, and that no input does harm."""

from __future__ import annotations

import gc

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from bgpd.config.document import Limits, Value, parse, spell
from bgpd.config.scalar import shown


def read(text: str | bytes) -> list[Value]:
    documents = parse(text if isinstance(text, bytes) else text.encode(), "f")
    assert documents.faults == ()
    return [document.value for document in documents.values]


def faults(text: str | bytes, limits: Limits | None = None) -> list[str]:
    data = text if isinstance(text, bytes) else text.encode()
    return [str(fault) for fault in parse(data, "f", limits or Limits()).faults]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("yes", True),
        ("Off", False),
        ("'yes'", "yes"),
        ("~", None),
        ("", None),
        ("null", None),
        ("012", 10),
        ("0x1F", 31),
        ("-0b101", -5),
        ("1_000", 1000),
        ("+7", 7),
        ("09", "09"),
        ("1.5", 1.5),
        (".5", 0.5),
        ("-.inf", float("-inf")),
        ("1e3", "1e3"),
        ("64512:10", "64512:10"),
        ("1:30.5", "1:30.5"),
        ("2024-01-01", "2024-01-01"),
        ("=", "="),
        ("!!str 5", "5"),
        ("!!float 5", 5.0),
        ("!!int '5'", 5),
        ("!!null ''", None),
        ("!!seq [1]", [1]),
    ],
)
def test_scalars(text: str, value: Value) -> None:
    """A scalar means what YAML 1.1 says, but for timestamps and base-60 numbers."""
    assert read(f"- {text}") == [[value]]


@settings(max_examples=40, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
        max_leaves=10,
    )
)
def test_what_yaml_writes_is_read_back(value: Value) -> None:
    """Any plain value survives being written by PyYAML and read by us."""
    assert read(yaml.safe_dump(value)) == [value]


def test_several_documents() -> None:
    """Each document of a stream is one value; an empty one is None, an empty file holds none."""
    assert read("a: 1\n---\n---\n[x]\n...\n") == [{"a": 1}, None, ["x"]]
    assert read("") == []
    assert read("# nothing\n") == []


def test_a_byte_order_mark_is_no_content() -> None:
    """Editors on Windows write one."""
    assert read(b"\xef\xbb\xbfa: 1") == [{"a": 1}]


def test_keys_are_text() -> None:
    """A key that looks like a boolean or a number stays what was written."""
    assert read("{on: 1, 2: 3, ~: 4}") == [{"on": 1, "2": 3, "~": 4}]


def test_aliases_and_merge_keys() -> None:
    """An alias repeats a value; a merge fills in what is not given, the first of several winning."""
    assert read("a: &x {p: 1, q: 2}\nb: *x\nc: {<<: *x, q: 3}\n") == [
        {"a": {"p": 1, "q": 2}, "b": {"p": 1, "q": 2}, "c": {"q": 3, "p": 1}}
    ]
    assert read("- &x {p: 1}\n- &y {p: 2, r: 2}\n- {<<: [*x, *y]}\n- {'<<': 1}") == [
        [{"p": 1}, {"p": 2, "r": 2}, {"p": 1, "r": 2}, {"<<": 1}]
    ]


def test_places() -> None:
    """An entry stands at its key, an item at its value, and what is missing at its nearest ancestor."""
    (document,) = parse(b"a:\n  b: [x, {c: 1}]\n  d: &z\n    e: 2\nf: *z\n", "f").values
    assert document.place(()) == (1, 1)
    assert document.place(("a", "b")) == (2, 3)
    assert document.place(("a", "b", 1, "c")) == (2, 11)
    assert document.place(("a", "b", 7, "c")) == (2, 3)
    assert document.place(("a", "nope", "b")) == (1, 1)
    assert document.place(("f", "e")) == (4, 5)


BOMB = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 30)
)
CHAIN = "- &a0 [x]\n" + "".join(f"- &a{i} [*a{i - 1}]\n" for i in range(1, 200))


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (b"\xff\xfea\0", "f:1:1: the byte 0xff is not UTF-8 text"),
        (b"a: 1\nb: \xc3\xa9\0", "f:2:5: the byte 0x00 is not UTF-8 text"),
        (b"a: \x07", "f:1:4: the character U+0007 is not allowed in YAML"),
        ("a:\n\tb: 1", "f:2:1: not YAML: a tab; indent with spaces"),
        ("a: b: c", "f:1:5: not YAML: mapping values are not allowed in this context"),
        ("a: 'x", "f:1:6: not YAML: found unexpected end of stream (while scanning a quoted scalar)"),
        ("a: 1\nb: 2\na: 3", "f:3:1: a: the key is given twice; it is already on line 1, column 1"),
        ("[{b: {c: 1, c: 2}}]", "f:1:13: [0].b.c: the key is given twice; it is already on line 1, column 7"),
        ("a: *b", "f:1:4: a: the alias *b names nothing above it"),
        ("a: &b [*b]", "f:1:8: a[0]: the alias *b stands inside what it names"),
        ("? [a]\n: b", "f:1:3: a key must be plain text, not a mapping, a list or an alias"),
        ("a: !foo 1", "f:1:4: a: the tag '!foo' is not known"),
        ("a: !!python/object:os.system x", "f:1:4: a: the tag '!!python/object:os.system' is not known"),
        ("a: !!set {b}", "f:1:4: a: the tag '!!set' is not known"),
        ("a: !!int b", "f:1:4: a: 'b' does not fit its tag '!!int'"),
        ("a: 0b_", "f:1:4: a: '0b_' is not a number; quote it if it is text"),
        ("a: " + "9" * 5000, "f:1:4: a: a number of 5000 characters is too long"),
        ("{<<: 1}", "f:1:6: ['<<']: '<<' takes a mapping or a list of mappings, not 1"),
        ("[" * 1_000_000, "f:1:65: it nests deeper than 64 levels"),
        ("- " * 500_000, "f:1:129: it nests deeper than 64 levels"),
        (CHAIN, "f:64:9: it nests deeper than 64 levels"),
        (BOMB, "f:6:38: a5[7]: it holds more than 1000000 values, aliases written out"),
        (b"x" * 50_000_000, "f: it has 50000000 bytes; at most 8388608 are read"),
    ],
    ids=lambda value: str(value[:20]),
)
def test_refusals(text: str | bytes, fault: str) -> None:
    """Each is refused with its place, and without harm."""
    assert faults(text)[0] == fault


def test_faults_come_together() -> None:
    """What does not end the reading is noted, and the reading goes on."""
    assert faults("a: !x 1\nb: 1\nb: !!int y\n") == [
        "f:1:4: a: the tag '!x' is not known",
        "f:3:1: b: the key is given twice; it is already on line 2, column 1",
        "f:3:4: b: 'y' does not fit its tag '!!int'",
    ]


def test_documents_before_a_fault_are_kept() -> None:
    """A file that breaks off in its second document still gives its first."""
    documents = parse(b"a: 1\n---\nb: [\n", "f")
    assert [document.value for document in documents.values] == [{"a": 1}]
    assert len(documents.faults) == 1


def test_faults_are_bounded() -> None:
    """A file that is nothing but faults is not answered with a million of them."""
    assert len(faults("a: 1\n" * 100_000)) == 101


def test_nodes_are_bounded_without_aliases() -> None:
    """The limit also holds for what is written out."""
    assert faults("[a, b, c]", Limits(nodes=3)) == ["f:1:1: it holds more than 3 values, aliases written out"]


@pytest.mark.parametrize(
    ("path", "text"),
    [
        (("bgp", "peers", 1, "peerAddress"), "bgp.peers[1].peerAddress"),
        ((0, "a"), "[0].a"),
        (("labels", "a.b/c"), "labels['a.b/c']"),
        (("a\nb",), "['a\\nb']"),
    ],
)
def test_spelling_of_paths(path: tuple[str | int, ...], text: str) -> None:
    """A path is written as an operator would, and stays on one line."""
    assert spell(path) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "nothing"), (True, "true"), (5, "5"), ("it's", '"it\'s"'), ({}, "a mapping"), ([], "a list")],
)
def test_quoting_of_values(value: object, text: str) -> None:
    """A value is quoted as it was written."""
    assert shown(value) == text


@settings(deadline=None)
@given(st.text() | st.integers() | st.floats())
def test_quotes_are_short_and_on_one_line(value: object) -> None:
    """Whatever it is, it cannot spoil the line that quotes it."""
    assert len(shown(value)) <= 60
    assert shown(value).isprintable()


@settings(deadline=None)
@given(st.binary(max_size=200) | st.text("[]{}:,-&*!|>'\"#% \n\tab01<?~.", max_size=60).map(str.encode))
def test_no_input_raises(data: bytes) -> None:
    """Anything at all gives documents and faults."""
    parse(data, "f")


def test_what_was_read_goes_when_nobody_needs_it() -> None:
    """At once: a list of 16,000 is read again at every edit, and garbage that waits is memory that piles up."""
    gc.collect()
    gc.disable()
    try:
        parse(b"{a: &a [1, 2], b: {<<: {c: 3}}, d: *a}", "f")
        assert gc.collect() == 0
    finally:
        gc.enable()
