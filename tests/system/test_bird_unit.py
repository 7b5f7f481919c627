"""BIRD under the rules of bgpd-bfd.service: its user, its one capability, its system call filter, its directory."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import pytest

from tests.fabric.bfd_site import BfdSite
from tests.fabric.bird import Bird
from tests.fabric.netns import Lab, missing
from tests.fabric.test_bfd import INTERVAL_MS
from tests.system import confine

UNIT = Path(__file__).parents[2] / "systemd" / "bgpd-bfd.service"
NOBODY = 65534
CAPABILITIES = {"net_raw": 1 << 13, "dac_read_search": 1 << 2}  # linux/capability.h


def under_the_unit() -> list[str]:
    """What to put before a command. The second capability is not the unit's: this tree may be closed to nobody."""
    given = "-all," + ",".join(f"+{name}" for name in CAPABILITIES)
    who = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--no-new-privs"]
    who += [f"--{kind}={given}" for kind in ("inh-caps", "ambient-caps", "bounding-set")]
    return [*who, sys.executable, "-I", confine.__file__, str(UNIT)]


def test_bird_works_under_its_unit() -> None:
    """Sessions of both kinds and families come up, one changes at run time, and a dead path is seen."""
    reason = missing("bird", "setpriv", "systemd-analyze")
    if reason is not None:
        pytest.skip(reason)
    settings = confine.directives(UNIT)
    assert settings["AmbientCapabilities"] == settings["CapabilityBoundingSet"] == ["CAP_NET_RAW"]
    with Lab() as lab:
        site = BfdSite(lab, Bird, INTERVAL_MS)
        directory = site.node.directory / "run" / "bfd"
        directory.mkdir(parents=True)
        shutil.chown(directory, 0, NOBODY)
        directory.chmod(0o2770)  # as bgpd.tmpfiles has it
        site.fabric.start()
        site.node.start_bfd(under=under_the_unit())
        site.node.start()
        site.wait_up()
        assert site.node.bfd is not None
        status = Path(f"/proc/{site.node.bfd.pid}/status").read_text()
        assert Path(f"/proc/{site.node.bfd.pid}/exe").readlink().name == "bird"
        assert re.search(rf"^Uid:\s+{NOBODY}\s", status, re.M)
        assert re.search(r"^Seccomp:\s+2$", status, re.M)
        assert re.search(rf"^CapEff:\s+{sum(CAPABILITIES.values()):016x}$", status, re.M)
        site.node.config["bgp"]["peers"][0].pop("bfd")
        site.node.write_config()
        site.node.bgpd("reload")
        site.node.wait_status("it stays", lambda it: [row["bfd"] is None for row in it["peers"]].count(True) == 1)
        site.fabric.cut(site.place)
        site.node.wait_status(
            "a dead path is not seen", lambda it: all("BFD went down" in row["why"] for row in it["peers"][1:]), 5
        )
