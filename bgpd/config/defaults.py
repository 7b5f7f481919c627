"""What holds of the configuration file also for those who do not read it as a whole. Values only."""

from __future__ import annotations

from pathlib import Path

MAX_BYTES = 1024 * 1024  # a thousand peers written out in full are a third of it
RUN_DIRECTORY = Path("/run/bgpd")  # unless `paths.run` says another one
