"""What a directory of manifests means while its files are edited, broken, moved and taken away."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from bgpd.kube.feed import Feed, SourceState, SourceStatus
from bgpd.kube.manifests import ManifestSource
from bgpd.kube.parse import NODE, Kind, RawObject
from bgpd.runtime.store import Store
from tests.contract.test_source_contract import Nodes, running, until

SETTLE_S = 0.3
LABELS = Kind("Label", "example.test/v1", "labels", namespaced=True, raw=RawObject, to_model=lambda raw: raw)


def node(name: str = "a", cidr: str = "10.1.2.0/24", indent: str = "") -> str:
    lines = ["apiVersion: v1", "kind: Node", f"metadata: {{name: {name}}}", f"spec: {{podCIDR: {cidr}}}", ""]
    return "\n".join(indent + line if line else line for line in lines)


class Bench:
    """A source that is read by hand, on a clock that is set by hand."""

    def __init__(self, directory: Path, name: str | None = None) -> None:
        self.directory = directory
        self.now = 100.0
        self.store = Nodes({})
        feed = Feed(NODE, self.store, name)
        self.source = ManifestSource(directory, [feed], settle_s=SETTLE_S, rescan_s=10, clock=lambda: self.now)

    def write(self, name: str, text: str) -> None:
        """Through a rename, so that no clock tick can hide that the file changed."""
        (self.directory / ".new").write_text(text)
        (self.directory / ".new").rename(self.directory / name)

    def read(self, after_s: float = 1.0) -> dict[str, str]:
        self.now += after_s
        self.wait_s = self.source.read()
        return self.cidrs

    def settled(self) -> dict[str, str]:
        self.read()
        return self.read(SETTLE_S)

    @property
    def cidrs(self) -> dict[str, str]:
        return {name: str(node.pod_cidrs[0]) for name, node in self.store.newest.value.items()}

    @property
    def status(self) -> SourceStatus:
        return self.source.status.newest.value

    @property
    def faults(self) -> list[str]:
        return [str(fault).removeprefix(f"{self.directory}/") for fault in self.status.faults]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


FILES = {
    "yaml": ("n.yaml", node("a")),
    "yml": ("n.yml", node("a")),
    "json": ("n.json", json.dumps({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "a"},
                                   "spec": {"podCIDR": "10.1.2.0/24"}})),
    "documents": ("n.yaml", f"---\n---\n{node('a')}---\n# nothing\n"),
    "list": ("n.yaml", f"apiVersion: v1\nkind: List\nitems:\n- {node('a', indent='  ').strip()}\n"),
    "list of the kind": (
        "n.yaml",
        "apiVersion: v1\nkind: NodeList\nitems:\n- metadata: {name: a}\n  spec: {podCIDR: 10.1.2.0/24}\n",
    ),
    "other kinds": ("n.yaml", f"apiVersion: v1\nkind: Pod\nmetadata: 5\n---\n{node('a')}"),
    "kind of another group": ("n.yaml", f"apiVersion: x.test/v1\nkind: Node\nmetadata: 5\n---\n{node('a')}"),
    "empty lists": ("n.yaml", f"kind: List\nitems:\n---\nkind: PodList\nitems: 5\n---\n{node('a')}"),
}  # fmt: skip


@pytest.mark.parametrize(("name", "text"), FILES.values(), ids=FILES.keys())
def test_one_node_in_many_shapes(bench: Bench, name: str, text: str) -> None:
    """YAML or JSON, several documents, lists; what is not asked for is passed over in silence."""
    bench.write(name, text)
    assert bench.read() == {"a": "10.1.2.0/24"}
    assert bench.faults == []
    assert bench.store.newest.synced


@pytest.mark.parametrize(
    "name", [".n.yaml", "n.yaml~", "n.yaml.swp", "#n.yaml#", ".#n.yaml", "4913", "n.txt", "n.tmp"]
)
def test_editors_files_do_not_count(bench: Bench, name: str) -> None:
    """Names that editors, kubelet and package managers leave behind."""
    bench.write(name, node())
    assert bench.read() == {}


def test_file_that_breaks_keeps_its_last_content(bench: Bench) -> None:
    """The fault has its place, other files go on, and the repaired file counts at once."""
    bench.write("a.yaml", node("a"))
    bench.write("b.yaml", node("b"))
    bench.read()
    bench.write("a.yaml", "kind: Node\n\tmetadata:")
    bench.write("b.yaml", node("b", "10.9.9.0/24"))
    assert bench.settled() == {"a": "10.1.2.0/24", "b": "10.9.9.0/24"}
    (fault,) = bench.faults
    assert fault.startswith("a.yaml:2:1: not YAML: a tab")
    assert bench.status.state is SourceState.SYNCED
    bench.write("a.yaml", node("a", "10.8.8.0/24"))
    assert bench.read()["a"] == "10.8.8.0/24"
    assert bench.faults == []


def test_object_of_wrong_shape_keeps_its_own_last_form(bench: Bench) -> None:
    """Only that object: its neighbors in the file change, and one that left the file goes."""
    bench.write("n.yaml", f"{node('a')}---\n{node('b')}---\n{node('c')}")
    bench.read()
    bench.write("n.yaml", f"{node('a', '5')}---\n{node('b', '10.9.9.0/24')}")
    assert bench.settled() == {"a": "10.1.2.0/24", "b": "10.9.9.0/24"}
    assert bench.faults == ["n.yaml:4:8: spec.podCIDR: Node a: expected a string or nothing, got a number"]


def test_object_without_a_name_may_be_any(bench: Bench) -> None:
    """When not even the name can be read, nothing that was in the file is taken for removed."""
    bench.write("n.yaml", f"{node('a')}---\n{node('b')}")
    bench.read()
    bench.write("n.yaml", f"{node('a')}---\napiVersion: v1\nkind: Node\nmetadata: {{nmae: b}}\n")
    assert set(bench.settled()) == {"a", "b"}
    assert bench.faults[0].startswith("n.yaml:8:1: metadata: object missing required field")


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("just text", "n.yaml:1:1: is not a Kubernetes object"),
        ("- a\n", "n.yaml:1:1: is not a Kubernetes object"),
        ("name: a\n", "n.yaml:1:1: is not a Kubernetes object: it has no kind"),
        ("kind: Node\n", "n.yaml:1:1: has no apiVersion; write apiVersion: v1"),
        ("kind: List\nitems: 5\n", "n.yaml:2:1: items: must be a list"),
        ("kind: List\nitems: [5]\n", "n.yaml:2:9: items[0]: is not a Kubernetes object"),
    ],
)
def test_document_that_is_no_object(bench: Bench, text: str, fault: str) -> None:
    """Said with its place; the rest of the file counts."""
    bench.write("n.yaml", f"{text}---\n{node()}" if text != "just text" else text)
    assert bench.read() == ({} if text == "just text" else {"a": "10.1.2.0/24"})
    assert bench.faults == [fault]


def test_two_files_define_one_node(bench: Bench) -> None:
    """The first by file name wins, whichever was written first; the fault stands at the other and names both."""
    bench.write("b.yaml", f"# x\n{node('a', '10.9.9.0/24')}")
    bench.read()
    bench.write("a.yaml", node("a", "10.8.8.0/24"))
    assert bench.read() == {"a": "10.8.8.0/24"}
    (fault,) = bench.faults
    assert fault == (
        f"b.yaml:2:1: metadata.name: Node a is defined already at {bench.directory}/a.yaml:1:1; "
        "that one counts, remove one"
    )
    (bench.directory / "a.yaml").unlink()
    assert bench.settled() == {"a": "10.9.9.0/24"}
    assert bench.faults == []


def test_object_that_moves_to_another_file_is_never_gone(bench: Bench) -> None:
    """And its new form counts at once, without a fault about the old one."""
    bench.write("a.yaml", node("a"))
    bench.read()
    (bench.directory / "a.yaml").unlink()
    bench.write("z.yaml", node("a", "10.9.9.0/24"))
    assert bench.read() == {"a": "10.9.9.0/24"}
    assert bench.faults == []
    assert bench.read() == {"a": "10.9.9.0/24"}


@pytest.mark.parametrize("half", ["", "# written in a moment\n", f"{node('a')}---\n"])
def test_file_being_written_does_not_lose_objects(bench: Bench, half: str) -> None:
    """A truncated file that happens to be valid YAML is not believed before it has settled."""
    bench.write("n.yaml", f"{node('a')}---\n{node('b')}")
    bench.read()
    bench.write("n.yaml", half)
    assert set(bench.read()) == {"a", "b"}
    assert bench.wait_s == pytest.approx(SETTLE_S)
    assert set(bench.read(SETTLE_S / 2)) == {"a", "b"}
    bench.write("n.yaml", f"{node('a')}---\n{node('b', '10.9.9.0/24')}")
    assert bench.read(SETTLE_S) == {"a": "10.1.2.0/24", "b": "10.9.9.0/24"}
    assert bench.wait_s == 10


def test_removal_counts_when_it_has_settled(bench: Bench) -> None:
    """A file that is gone, and stays so, takes its objects along."""
    bench.write("a.yaml", node("a"))
    bench.write("b.yaml", node("b"))
    bench.read()
    (bench.directory / "a.yaml").unlink()
    assert set(bench.read()) == {"a", "b"}
    assert set(bench.read(SETTLE_S)) == {"b"}


def test_what_goes_together_is_gone_in_one_step(bench: Bench) -> None:
    """Whoever empties a directory removes one file after the other."""
    for name in ("a", "b"):
        bench.write(f"{name}.yaml", node(name))
    bench.read()
    (bench.directory / "a.yaml").unlink()
    assert set(bench.read(after_s=0)) == {"a", "b"}
    (bench.directory / "b.yaml").unlink()
    assert set(bench.read(after_s=SETTLE_S / 2)) == {"a", "b"}
    assert set(bench.read(after_s=SETTLE_S / 2)) == {"a", "b"}
    assert bench.wait_s == pytest.approx(SETTLE_S / 2)
    assert set(bench.read(after_s=SETTLE_S / 2)) == set()


def test_emptied_directory_is_published_with_a_warning(bench: Bench) -> None:
    """Whether to believe it is the reconcile loop's decision; the status says that it is strange."""
    bench.write("a.yaml", node("a"))
    bench.read()
    assert bench.status.warning == ""
    (bench.directory / "a.yaml").unlink()
    assert bench.settled() == {}
    assert bench.store.newest.synced
    assert bench.status.warning == f"{bench.directory}: there is no Node"
    assert bench.status.state is SourceState.SYNCED


def test_missing_directory_keeps_everything(bench: Bench) -> None:
    """An unmounted directory says nothing about what was in it."""
    bench.write("a.yaml", node("a"))
    bench.read()
    bench.directory.rename(bench.directory.with_name("away"))
    assert bench.settled() == {"a": "10.1.2.0/24"}
    assert (bench.status.state, bench.status.since) == (SourceState.RETRYING, 102.0)
    text = f"{bench.directory} cannot be read: No such file or directory; is source.manifests right?"
    assert bench.status.last_error == text
    bench.directory.with_name("away").rename(bench.directory)
    bench.read()
    assert (bench.status.state, bench.status.reconnects) == (SourceState.SYNCED, 1)


def test_directory_that_comes_late(tmp_path: Path) -> None:
    """Before it is there nothing is synced; a file in its place is as good as nothing."""
    late = Bench(tmp_path / "late")
    late.read()
    assert (late.store.newest.synced, late.status.state) == (False, SourceState.STARTING)
    late.directory.write_text("")
    late.read()
    assert "Not a directory" in late.status.last_error
    late.directory.unlink()
    late.directory.mkdir()
    assert late.read() == {}
    assert (late.store.newest.synced, late.status.state) == (True, SourceState.SYNCED)


@pytest.mark.parametrize("text", ["{", node("a", "5"), "apiVersion: v1\nkind: Node\nmetadata: {}\n"])
def test_broken_from_the_start_is_not_an_absence(bench: Bench, text: str) -> None:
    """What could never be read may be there: the mapping is published and not called complete before it is."""
    bench.write("a.yaml", text)
    bench.write("b.yaml", node("b"))
    assert set(bench.read()) == {"b"}
    assert not bench.store.newest.synced
    assert bench.status.state is SourceState.STARTING
    assert bench.status.last_error.endswith(str(bench.status.faults[0]))
    bench.write("a.yaml", node("a"))
    assert set(bench.read()) == {"a", "b"}
    assert bench.store.newest.synced


def test_new_file_that_is_broken_does_not_unsync(bench: Bench) -> None:
    """Once complete, a file that was never good hides nothing that was known."""
    bench.write("a.yaml", node("a"))
    bench.read()
    bench.write("b.yaml", "{")
    bench.read()
    assert bench.store.newest.synced
    assert len(bench.faults) == 1


def test_name_filter_also_holds_for_faults(tmp_path: Path) -> None:
    """Another node's trouble is not ours, unless nobody can tell whose it is."""
    bench = Bench(tmp_path, "a")
    bench.write("n.yaml", f"{node('a')}---\n{node('b', '5')}---\n{node('b')}---\n{node('b')}")
    assert bench.read() == {"a": "10.1.2.0/24"}
    assert (bench.faults, bench.store.newest.synced) == ([], True)
    (bench.directory / "n.yaml").unlink()
    bench.settled()
    absent = "there is no Node named a; is node.name as `kubectl get nodes` shows it?"
    assert bench.status.warning == f"{tmp_path}: {absent}"


def test_only_changed_files_are_read_again(bench: Bench) -> None:
    """A thousand manifests cost a thousand looks, not a thousand parses: the others' values are the same ones."""
    for name in "ab":
        bench.write(f"{name}.yaml", node(name))
    bench.read()
    before = bench.store.newest.value
    bench.write("b.yaml", node("b", "10.9.9.0/24"))
    assert bench.read()["b"] == "10.9.9.0/24"
    assert bench.store.newest.value["a"] is before["a"]


@pytest.mark.parametrize("kind", ["pipe", "directory", "dangling link"])
def test_what_is_no_file_is_a_fault(bench: Bench, kind: str) -> None:
    """It neither hangs nor harms; a real file in its place counts."""
    bench.write("a.yaml", node("a"))
    bench.read()
    place = bench.directory / "n.yaml"
    if kind == "pipe":
        os.mkfifo(place)
    elif kind == "directory":
        place.mkdir()
    else:
        place.symlink_to("nowhere.yaml")
    assert bench.read() == {"a": "10.1.2.0/24"}
    (fault,) = bench.faults
    assert fault.startswith("n.yaml: cannot be read: ")
    if kind == "dangling link":
        bench.write("nowhere.yaml", node("b"))
        (bench.directory / "nowhere.yaml").rename(bench.directory / "x.txt")
        place.unlink()
        place.symlink_to("x.txt")
        assert set(bench.read()) == {"a", "b"}


def test_link_swap_as_kubelet_does_it(bench: Bench) -> None:
    """A mounted ConfigMap: files are links through `..data`, which is swapped in one step."""
    for number, cidr in enumerate(("10.1.2.0/24", "10.9.9.0/24")):
        (bench.directory / f"..{number}").mkdir()
        (bench.directory / f"..{number}" / "n.yaml").write_text(node("a", cidr))
    (bench.directory / "..data").symlink_to("..0")
    (bench.directory / "n.yaml").symlink_to("..data/n.yaml")
    assert bench.read() == {"a": "10.1.2.0/24"}
    (bench.directory / "..new").symlink_to("..1")
    (bench.directory / "..new").rename(bench.directory / "..data")
    assert bench.read() == {"a": "10.9.9.0/24"}


def test_several_kinds_from_one_directory(tmp_path: Path) -> None:
    """Each kind goes into its own store, under its own keys."""
    nodes = Nodes({})
    labels = Store[Mapping[str, Any]]({})
    source = ManifestSource(tmp_path, [Feed(NODE, nodes), Feed(LABELS, labels)])
    other = "apiVersion: example.test/v1\nkind: Label\nmetadata: {name: a, namespace: x}\n"
    (tmp_path / "n.yaml").write_text(f"{node('a')}---\n{other}")
    source.read()
    assert set(nodes.newest.value) == {"a"}
    assert set(labels.newest.value) == {"x/a"}


def test_running_source_notices_writers_and_renames(tmp_path: Path) -> None:
    """A file that a slow writer fills, then one that is renamed into place, then its removal."""

    async def scenario() -> None:
        store = Nodes({})
        source = ManifestSource(tmp_path, [Feed(NODE, store)], settle_s=0.02)
        async with running(source):
            await until(store, lambda nodes: not nodes)
            with (tmp_path / "a.yaml").open("w") as file:
                for character in node("a"):
                    file.write(character)
                    file.flush()
            await until(store, lambda nodes: set(nodes) == {"a"})
            (tmp_path / ".b").write_text(node("b"))
            (tmp_path / ".b").rename(tmp_path / "b.yaml")
            await until(store, lambda nodes: set(nodes) == {"a", "b"})
            (tmp_path / "a.yaml").unlink()
            await until(store, lambda nodes: set(nodes) == {"b"})

    asyncio.run(scenario())


def test_manifests_do_not_load_the_kubernetes_client() -> None:
    """A node without an API server does not pay its 30 MB, nor aiohttp's."""
    script = """
import sys
from pathlib import Path
from bgpd.kube.feed import Feed
from bgpd.kube.parse import NODE
from bgpd.kube.sources import manifest_source
from bgpd.runtime.store import Store
manifest_source(Path("."), [Feed(NODE, Store({}))])
print(sorted({"kubernetes", "aiohttp", "pydantic"} & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
