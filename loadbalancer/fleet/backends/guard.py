"""Ends the replica processes when the load balancer is gone, however it went.

A killed load balancer cannot clean up after itself, so it keeps this small program beside it, joined
by a pipe. The load balancer writes `+PGID` for each process group it starts and `-PGID` for each
that has ended; when the pipe closes without a word, whatever is left is killed. Run as a script, with
nothing but the standard library, so that it starts in a few milliseconds and stays small.
"""

import contextlib
import os
import signal
import sys


def main() -> None:
    """Read groups from standard input until it ends, then kill those that are left."""
    # The guard must outlive a Ctrl-C or SIGTERM sent to everyone on the terminal.
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
