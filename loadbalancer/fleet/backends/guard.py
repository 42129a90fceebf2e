"""The guard process: kills the replica processes when the load balancer has ended in any way.

A load balancer that is killed cannot stop its replicas. It therefore runs this program beside it, joined by a
pipe. The load balancer writes `+PGID` for each process group that it starts and `-PGID` for each group that
has ended. When the pipe closes, the guard kills the groups that are left. It runs as a script and imports the
standard library alone, so that it starts in a few milliseconds and stays small.
"""

import contextlib
import os
import signal
import sys


def main() -> None:
    """Read process groups from standard input until it ends, then kill the groups that are left."""
    # Signals that reach all processes of a terminal must not end the guard before the load balancer.
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    groups: set[int] = set()
    for line in sys.stdin:
        group = int(line[1:])
        if line[0] == "+":
            groups.add(group)
        else:
            groups.discard(group)
    for group in groups:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)


if __name__ == "__main__":
    main()
