"""The soak: full load for minutes, connections that come and go; memory stays flat, no file is left open.

Rounds of varied traffic on kept connections, few and many, and on connections that end with each answer.
After every round the load balancer's resident memory and open files are read. The first rounds fill caches
and pools, so what they leave is the measure for the rest.
"""

import argparse
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from analysis.bench.contest import ContestError, check
from analysis.bench.peers import OURS, Peer, contestants
from analysis.bench.traffic import Traffic, short, varied

ROUNDS: tuple[tuple[Traffic, int], ...] = ((varied, 64), (varied, 500), (short, 64))
"""The traffic of each round and its connections, in turn."""

SECONDS = 10
WARM_UP = 6
"""Rounds that fill what is to be filled."""

GROWTH = 1.15
"""What memory may be at the end, as a multiple of what it was after the warm-up."""

QUIET = 3.0
"""Seconds after a round until idle connections to replicas have gone."""


@dataclass(frozen=True)
class State:
    """What was read after a round.

    Args:
        minutes: Since the beginning.
        memory: MiB resident.
        files: Open files.
    """

    minutes: float
    memory: float
    files: int


def soak(peer: Peer, minutes: float) -> list[State]:
    """Load it for so long.

    Args:
        peer: What to load.
        minutes: How long.
    """
    began, states, round_ = time.monotonic(), [], 0
    while time.monotonic() - began < minutes * 60 or round_ <= WARM_UP:
        traffic, connections = ROUNDS[round_ % len(ROUNDS)]
        outcome = traffic(peer, connections, SECONDS)
        time.sleep(QUIET)
        files = len(os.listdir(f"/proc/{peer.pid}/fd"))
        states.append(State((time.monotonic() - began) / 60, peer.memory(), files))
        round_ += 1
        now = states[-1]
        print(
            f"{now.minutes:5.1f} min: {outcome.rate:9,.0f} requests/s, {outcome.failures} failed, "
            f"{now.memory:6.1f} MiB, {files} files",
            flush=True,
        )
    return states


def main() -> int:
    """Soak the fast lane, and say whether it has stayed what it was."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    options = parser.parse_args()
    try:
        check()
    except ContestError as error:
        print(f"make soak: {error}", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as home, contestants(Path(home), (OURS,)) as peers:
        states = soak(peers[0], options.minutes)
    settled, last = states[WARM_UP - 1], states[-1]
    flat = last.memory <= settled.memory * GROWTH and last.files <= settled.files
    print(f"after the warm-up {settled.memory:.1f} MiB and {settled.files} files")
    print(f"at the end {last.memory:.1f} MiB and {last.files} files: {'flat' if flat else 'NOT flat'}")
    return 0 if flat else 1


if __name__ == "__main__":
    sys.exit(main())
