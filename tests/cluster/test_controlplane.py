"""What the tests of the daemon may rely on in the control plane they run against.

Each test states one fact about the real servers, as `controlplane.py` configures them. Nothing here tests
the daemon.
"""

from __future__ import annotations

import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from .controlplane import ControlPlane
from .process import StartError
from .rest import ApiError, Rest

NODES = "/api/v1/nodes"
ACCOUNTS = "/api/v1/namespaces/default/serviceaccounts"
SECRETS = "/api/v1/namespaces/default/secrets"
WHO_AM_I = "/apis/authentication.k8s.io/v1/selfsubjectreviews"

READ_NODES = """
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {{name: {name}}}
rules:
- {{apiGroups: [""], resources: [nodes], verbs: [get]}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {{name: {name}}}
roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: {name}}}
subjects: [{{apiGroup: rbac.authorization.k8s.io, kind: User, name: {name}}}]
"""

DEFINITION = """
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: widgets.example.test}
spec:
  group: example.test
  scope: Namespaced
  names: {plural: widgets, singular: widget, kind: Widget}
  versions:
  - name: v1
    served: true
    storage: true
    schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}
---
apiVersion: example.test/v1
kind: Widget
metadata: {name: first}
size: 3
"""


@pytest.fixture
def name() -> str:
    """A name that no other test uses."""
    return f"test-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def namespace_with_loopback() -> Iterator[str]:
    """An empty network namespace, its loopback up."""
    name = f"cp-{uuid.uuid4().hex[:8]}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if made.returncode != 0:
        pytest.skip(f"no right to make a network namespace: {made.stderr.strip()}")
    subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
    yield name
    subprocess.run(["ip", "netns", "delete", name], check=True)


def user_of(client: Rest) -> str:
    """Who the server takes the client for."""
    return str(client.create(WHO_AM_I, {})["status"]["userInfo"]["username"])


def status_of(client: Rest, path: str) -> int:
    """The HTTP status of a GET."""
    try:
        client.get(path)
    except ApiError as error:
        return error.status
    return 200


def test_server_is_the_pinned_release(control_plane: ControlPlane) -> None:
    """The server says which release it is, and it is the one in go.mod."""
    version = control_plane.admin.get("/version")["gitVersion"]
    print(f"kube-apiserver {version}")
    go_mod = Path(__file__).with_name("controlplane") / "go.mod"
    assert f"k8s.io/kubernetes {version} " in go_mod.read_text()


def test_rbac_denies_a_user_without_a_role(control_plane: ControlPlane, name: str) -> None:
    """A user that no binding names is known (not 401) and may read nothing (403)."""
    client = control_plane.client(name)
    assert user_of(client) == name
    assert status_of(client, NODES) == 403


def test_apply_file_grants_exactly_what_the_file_says(
    control_plane: ControlPlane, name: str, tmp_path: Path
) -> None:
    """Roles applied from a file, twice, let their user get nodes and not list them."""
    control_plane.admin.create(NODES, {"metadata": {"name": name}})
    manifest = tmp_path / "rbac.yaml"
    manifest.write_text(READ_NODES.format(name=name))
    control_plane.apply_file(manifest)
    control_plane.apply_file(manifest)
    client = control_plane.client(name)
    # The authorizer reads roles through a watch of its own, so they count a little later.
    deadline = time.monotonic() + 5
    while status_of(client, f"{NODES}/{name}") != 200:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert status_of(client, NODES) == 403


def test_apply_file_waits_for_a_new_kind(control_plane: ControlPlane, tmp_path: Path) -> None:
    """A custom resource may follow its definition in one file."""
    manifest = tmp_path / "widgets.yaml"
    manifest.write_text(DEFINITION)
    control_plane.apply_file(manifest)
    widget = control_plane.admin.get("/apis/example.test/v1/namespaces/default/widgets/first")
    assert widget["size"] == 3


def test_watch_sees_the_changes_of_a_node_in_order(control_plane: ControlPlane, name: str) -> None:
    """Create, patch and delete arrive as ADDED, MODIFIED and DELETED."""
    admin = control_plane.admin
    before = admin.get(NODES)["metadata"]["resourceVersion"]
    admin.create(NODES, {"metadata": {"name": name}, "spec": {"podCIDR": "10.1.2.0/24"}})
    admin.patch(f"{NODES}/{name}", {"metadata": {"labels": {"rack": "7"}}})
    admin.delete(f"{NODES}/{name}")
    only = f"metadata.name={name}"
    events = list(admin.watch(NODES, seconds=1, resourceVersion=before, fieldSelector=only))
    assert [event["type"] for event in events] == ["ADDED", "MODIFIED", "DELETED"]
    assert events[1]["object"]["metadata"]["labels"]["rack"] == "7"
    assert events[0]["object"]["spec"]["podCIDR"] == "10.1.2.0/24"


def test_crash_of_the_apiserver_keeps_the_data(control_plane: ControlPlane, name: str) -> None:
    """A killed apiserver refuses connections; started again it serves the same objects on the same port."""
    admin = control_plane.admin
    created = admin.create(NODES, {"metadata": {"name": name}})
    control_plane.kill_apiserver()
    try:
        with pytest.raises(ConnectionRefusedError):
            admin.get(NODES)
    finally:
        control_plane.start_apiserver()
    assert admin.get(f"{NODES}/{name}")["metadata"]["uid"] == created["metadata"]["uid"]


def test_paused_apiserver_answers_after_it_is_resumed(control_plane: ControlPlane) -> None:
    """A frozen apiserver leaves a request unanswered until the client gives up; resumed it answers."""
    control_plane.pause_apiserver()
    try:
        with pytest.raises(TimeoutError):
            control_plane.client("admin", "system:masters", timeout_s=1).get("/version")
    finally:
        control_plane.resume_apiserver()
    assert control_plane.admin.get("/version")["major"] == "1"


def test_forgotten_history_is_gone_for_lists_and_watches(control_plane: ControlPlane, name: str) -> None:
    """Below the compacted revision a list is refused with 410, and a watch gets an ERROR event with 410."""
    admin = control_plane.admin
    old = admin.create(NODES, {"metadata": {"name": name}})["metadata"]["resourceVersion"]
    admin.patch(f"{NODES}/{name}", {"metadata": {"labels": {"rack": "7"}}})
    assert control_plane.forget_history() > int(old)
    with pytest.raises(ApiError) as refused:
        admin.get(NODES, resourceVersion=old, resourceVersionMatch="Exact")
    assert refused.value.status == 410
    (event,) = admin.watch(NODES, seconds=1, resourceVersion=old)
    assert (event["type"], event["object"]["code"]) == ("ERROR", 410)
    assert "too old resource version" in event["object"]["message"]


def test_token_dies_with_the_secret_it_is_bound_to(control_plane: ControlPlane, name: str) -> None:
    """A service account's token is accepted until its Secret is deleted, and then refused with 401."""
    control_plane.admin.create(ACCOUNTS, {"metadata": {"name": name}})
    secret = control_plane.admin.create(SECRETS, {"metadata": {"name": name}})
    client = control_plane.token_client(control_plane.service_account_token("default", name, bound_to=secret))
    assert user_of(client) == f"system:serviceaccount:default:{name}"
    control_plane.admin.delete(f"{SECRETS}/{name}")
    deadline = time.monotonic() + 20
    while status_of(client, "/version") != 401:
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_expiring_token_is_refused_after_its_time(control_plane: ControlPlane, name: str) -> None:
    """A token with time left is accepted, one whose time is up is refused with 401."""
    control_plane.admin.create(ACCOUNTS, {"metadata": {"name": name}})
    valid = control_plane.token_client(control_plane.expiring_token("default", name, 60))
    assert user_of(valid) == f"system:serviceaccount:default:{name}"
    expired = control_plane.token_client(control_plane.expiring_token("default", name, 0))
    assert status_of(expired, "/version") == 401


def test_kubeconfig_names_its_credential_by_file(
    control_plane: ControlPlane, name: str, tmp_path: Path
) -> None:
    """A token kubeconfig points at the token file, and a user's at files that exist."""
    token_file = tmp_path / "token"
    by_token = yaml.safe_load(control_plane.token_kubeconfig(token_file).read_text())
    assert by_token["users"][0]["user"] == {"tokenFile": str(token_file)}
    by_certificate = yaml.safe_load(control_plane.kubeconfig(name, "group").read_text())
    assert all(Path(path).is_file() for path in by_certificate["users"][0]["user"].values())
    assert by_certificate["clusters"][0]["cluster"]["server"] == control_plane.url


def test_failed_start_shows_the_log(control_plane_binaries: Path, tmp_path: Path) -> None:
    """A server that cannot start is an error with its own last words, and leaves nothing running."""
    broken = ControlPlane(tmp_path, control_plane_binaries, extra_args=["--no-such-flag"])
    with pytest.raises(StartError, match="no-such-flag"):
        broken.start()
    with pytest.raises(RuntimeError, match="etcd is not running"):
        _ = broken.etcd.pid


def test_runs_inside_a_network_namespace(
    control_plane_binaries: Path, tmp_path: Path, namespace_with_loopback: str
) -> None:
    """In a namespace of its own the control plane is reachable through `admin` and from nowhere outside."""
    with ControlPlane(tmp_path, control_plane_binaries, network=namespace_with_loopback) as inside:
        assert inside.admin.get("/version")["major"] == "1"
        outside = Rest(inside.address, inside.port)
        with pytest.raises(ConnectionRefusedError):
            outside.get("/version")
