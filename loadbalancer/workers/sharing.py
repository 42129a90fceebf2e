"""The assignment of listening sockets to workers. Pure.

The kernel spreads new connections over all sockets of the port, even over those from which no worker accepts.
So every socket needs a worker that serves, also while its own worker starts or is stuck.
"""

from collections.abc import Sequence


def assign(serving: Sequence[bool]) -> list[list[int]]:
    """Assign each listening socket to the workers that accept from it.

    A worker always has its own socket, so that a worker that starts or is silent accepts as soon as it can.
    The socket of a worker that does not serve is also assigned to the next worker that serves; after the last
    worker, the first one follows.

    Args:
        serving: For each worker, whether it serves.

    Returns:
        For each worker, the indices of its sockets in ascending order.
    """
    count = len(serving)
    shares = [[index] for index in range(count)]
    for index in range(count):
        if serving[index]:
            continue
        for step in range(1, count):
            other = (index + step) % count
            if serving[other]:
                shares[other].append(index)
                break
    return [sorted(share) for share in shares]
