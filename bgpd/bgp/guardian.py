"""ExaBGP's one helper: holds ExaBGP's pipes as long as ExaBGP lives, and starts the bridge whenever there is none.

ExaBGP blocks for good once a helper stops reading its stdin, drops all peers when a helper dies that it has much
to tell, and ends when helpers die too often. So the process that it starts does next to nothing: it makes what
one bridge hands to the next (the listening socket, so that a client only ever waits, and an empty file for the
memory), then becomes a shell in a loop, a tenth of a Python's size. What goes through the pipes is the bridge's.
ExaBGP starts this file (standard library only):

    python3 -I -S guardian.py SOCKET EOR_AFTER

The shell ends when a bridge ends well (ExaBGP has closed the pipes) and by ExaBGP's SIGTERM. The bridge learns of
its death from a pipe that nobody else holds.
"""

from __future__ import annotations

import os
import socket
import sys

# {alive}: one digit, which is all that a POSIX shell takes. A bridge that cannot even start is tried once a second,
# after twenty in a row; one that was killed is replaced in a tenth of that.
LOOP = """
short=0
while :; do
  begun=$(date +%s)
  "$@" {alive}>&-
  ended=$?
  [ "$ended" -ne 0 ] || exit 0
  echo "bridge: it has ended ($ended): starting another" >&2
  if [ $(($(date +%s) - begun)) -gt 1 ]; then short=0; else short=$((short + 1)); fi
  if [ "$short" -gt 20 ]; then sleep 1; else sleep 0.1; fi
done
"""


def listen(path: str) -> socket.socket:
    """The socket at `path`, mode 0600, replacing one that a dead guardian left behind."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    temporary = f"{path}.{os.getpid()}"
    os.umask(0o177)
    listener.bind(temporary)
    listener.listen(8)
    listener.setblocking(False)
    os.rename(temporary, path)  # noqa: PTH104 - pathlib costs a megabyte and some 10 ms
    return listener


def main() -> None:
    path, eor_after_s = sys.argv[1:]
    hangup, alive = os.pipe()
    if alive > 9:
        sys.exit("guardian: too many files are open from before; the shell counts to 9")
    listener, memory = listen(path), os.memfd_create("memory")
    handed = (listener.fileno(), memory, hangup)
    for descriptor in (*handed, alive):
        os.set_inheritable(descriptor, True)
    # its real path: a guardian that outlives an upgrade starts the bridge of its own release
    bridge = os.path.join(os.path.dirname(os.path.realpath(__file__)), "bridge.py")  # noqa: PTH118, PTH120
    python = (sys.executable, "-I", "-S", bridge, eor_after_s, str(os.getppid()), *map(str, handed))
    shell = ("sh", "-c", LOOP.format(alive=alive), "bgpd-guardian", *python)
    os.execv("/bin/sh", shell)  # noqa: S606 - a fixed text, no input


if __name__ == "__main__":
    main()
