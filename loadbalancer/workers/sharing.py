"""Which worker accepts connections from which listening socket. Pure.

The kernel spreads new connections over all sockets of the port, whether anybody accepts from them or not.
So every socket needs a worker that serves, also while its own worker is being started or is stuck.
"""

from collections.abc import Sequence


def share_out(serving: Sequence[bool]) -> list[list[int]]:
    """Give each listening socket to the workers that accept from it.

    A worker always has its own socket: one that starts or is silent accepts as soon as it can. The socket of
    a worker that does not serve also goes to the next worker that does, counted in a circle.

    Args:
        serving: Whether each worker serves.

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
