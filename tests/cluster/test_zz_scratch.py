import time
from tests.cluster.test_daemon import *
from tests.cluster.conftest import *
for k in list(globals()):
    if k.startswith("test_"): del globals()[k]
def test_deleted_while_down(cluster, place, node, tors):
    announcing(cluster, node, place)
    node.daemon.stop()
    cluster.unmake(place)
    t=time.monotonic()
    node.start_daemon()
    while time.monotonic()-t < 25 and tors[0].route(place.pod_cidrs[0]): time.sleep(.1)
    print("GONE?", tors[0].route(place.pod_cidrs[0]), time.monotonic()-t)
    print(node.bgpd("status", check=False), node.daemon.log())
    print(node.bgpd("routes", check=False))
def test_recreated_while_down(cluster, place, node, tors):
    announcing(cluster, node, place)
    node.daemon.stop()
    cluster.unmake(place); cluster.make(place, *OTHER_CIDRS)
    t=time.monotonic()
    node.start_daemon()
    for tor in tors:
        tor.wait_route(OTHER_CIDRS[0]); tor.wait_no_route(place.pod_cidrs[0])
    print(time.monotonic()-t)
