"""The soak test: minutes of full load, after which memory and open files must not have grown.

Rounds of varied traffic alternate between few kept connections, many kept connections, and connections of one
request each. After each round the test reads the load balancer's resident memory and its open files. The
first rounds fill caches and pools, so the growth is counted from their end.
"""

import argparse
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from analysis.bench.comparison import ComparisonError, check
from analysis.bench.peers import OURS, Peer, running_peers
from analysis.bench.traffic import Traffic, short, varied

ROUNDS: tuple[tuple[Traffic, int], ...] = ((varied, 64), (varied, 500), (short, 64))
"""The traffic and the number of connections of each round, in turn."""

SECONDS = 10
"""Duration of the load of a round."""

WARM_UP = 6
"""Number of rounds that fill caches and pools."""

GROWTH = 1.15
"""Largest memory at the end, as a multiple of the memory after the warm-up."""

QUIET = 3.0
"""Pause after a round in seconds, in which idle connections to replicas are closed."""


@dataclass(frozen=True)
class State:
    """The state of the load balancer after a round.

    Args:
        minutes: Time since the start of the test, in minutes.
        memory: Resident memory in MiB.
        files: Number of open files.
    """

    minutes: float
    memory: float
    files: int


def soak(peer: Peer, minutes: float) -> list[State]:
    """Run the rounds on a peer, print a line after each, and return the states.

    Args:
        peer: Peer to load.
        minutes: Shortest duration; the warm-up and one more round run in any case.
    """
    began = time.monotonic()
    states: list[State] = []
    while time.monotonic() - began < minutes * 60 or len(states) <= WARM_UP:
        traffic, connections = ROUNDS[len(states) % len(ROUNDS)]
        outcome = traffic(peer, connections, SECONDS)
        time.sleep(QUIET)
        files = len(os.listdir(f"/proc/{peer.pid}/fd"))
        states.append(State((time.monotonic() - began) / 60, peer.memory(), files))
        now = states[-1]
        print(
            f"{now.minutes:5.1f} min: {outcome.rate:9,.0f} requests/s, {outcome.failures} failed, "
            f"{now.memory:6.1f} MiB, {files} files",
            flush=True,
        )
    return states


def main() -> int:
    """Run the soak test on the fast lane; the exit status is 1 if memory or open files have grown."""
    parser = argparse.ArgumentParser(prog="python -m analysis.bench.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="duration of the test (default: 10)")
    options = parser.parse_args()
    try:
        check()
    except ComparisonError as error:
        print(f"make soak: {error}", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as home, running_peers(Path(home), (OURS,)) as peers:
        states = soak(peers[0], options.minutes)
    settled, last = states[WARM_UP - 1], states[-1]
    flat = last.memory <= settled.memory * GROWTH and last.files <= settled.files
    print(f"after the warm-up {settled.memory:.1f} MiB and {settled.files} files")
    print(f"at the end {last.memory:.1f} MiB and {last.files} files: {'no growth' if flat else 'GROWTH'}")
    return 0 if flat else 1


if __name__ == "__main__":
    sys.exit(main())
