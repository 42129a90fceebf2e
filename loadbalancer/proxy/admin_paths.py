"""The paths that the load balancer answers itself: `/rep`, `/add`, `/rm` and `/lb/…`."""

from urllib.parse import unquote

_ADMIN = frozenset({b"/rep", b"/add", b"/rm", b"/lb"})


def is_admin(path: str) -> bool:
    """Whether the admin application answers for a path, rather than a replica.

    Args:
        path: Percent-decoded, without the query.
    """
    return path.encode() in _ADMIN or path.startswith("/lb/")


def is_admin_target(target: bytes) -> bool:
    """The same for a request target as the client sent it, in origin form.

    Args:
        target: Path and query, percent-encoded.
    """
    path = target.partition(b"?")[0]
    if b"%" in path:
        return is_admin(unquote(path.decode("latin-1")))
    return path in _ADMIN or path.startswith(b"/lb/")
