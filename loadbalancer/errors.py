"""Errors that users may see, as types.

Code raises an error where the fault is found, with a sentence for the person who caused it or can mend it.
The error travels unchanged to the admin application, a lane or the command line, and `answers.answer` makes
JSON of it. Only these types reach a client. Any other exception is a defect of the load balancer: it is
logged with its trace, and the client gets a 500 without details.
"""

import errno


class DefectError(Exception):
    """The load balancer has a defect: its state is one that must not occur. The text is for the log."""


class LoadBalancerError(Exception):
    """Base of all errors whose text is meant for users. `status` is the HTTP status of the answer."""

    status = 500
    headers: tuple[tuple[str, str], ...] = ()


class BadRequestError(LoadBalancerError):
    """The request cannot be fulfilled, and nothing was changed."""

    status = 400


class HeadTooLargeError(BadRequestError):
    """The head of a request exceeds a limit.

    Args:
        sentence: The reason.
        status: The HTTP status: 431, or 414 for the target.
    """

    def __init__(self, sentence: str, status: int = 431) -> None:
        super().__init__(sentence)
        self.status = status


class BodyTooLargeError(BadRequestError):
    """The body of a request exceeds the limit.

    Args:
        limit: The limit in bytes.
    """

    status = 413

    def __init__(self, limit: int) -> None:
        super().__init__(f"the body is longer than {limit} bytes")


class HeadTimeoutError(BadRequestError):
    """The head of a request did not arrive in time."""

    status = 408


class UnauthorizedError(LoadBalancerError):
    """The admin token is missing or wrong."""

    status = 401
    headers = (("WWW-Authenticate", "Bearer"),)


class ForbiddenError(LoadBalancerError):
    """The sender may not make this request, and nothing was changed."""

    status = 403


class NotImplementedByUsError(LoadBalancerError):
    """The request needs a feature that the load balancer does not have."""

    status = 501


class BackendError(LoadBalancerError):
    """A replica cannot be started, stopped or listed. The text gives the reason and the remedy."""


class EngineAwayError(BackendError):
    """The engine that runs the replicas cannot be reached. The replica itself is not at fault."""


class ClosingError(LoadBalancerError):
    """The load balancer is shutting down and refuses changes."""

    status = 503
    headers = (("Retry-After", "1"),)


class TooManyConnectionsError(LoadBalancerError):
    """The number of client connections is at its limit."""

    status = 503
    headers = (("Retry-After", "1"),)


class NoReplicaError(LoadBalancerError):
    """No replica is in rotation."""

    status = 503
    headers = (("Retry-After", "1"),)


class ExhaustedError(LoadBalancerError):
    """The load balancer lacks file descriptors, ports or memory for a connection. No replica is at fault."""

    status = 503
    headers = (("Retry-After", "1"),)


_OWN_LIMITS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL})


def is_own_limit(error: OSError) -> bool:
    """Whether a connection failed because the load balancer, and not the peer, lacks a resource."""
    return error.errno in _OWN_LIMITS


class UpstreamError(LoadBalancerError):
    """The replica sent an invalid answer, or closed the connection during its answer."""

    status = 502


class UpstreamGarbledError(UpstreamError):
    """The replica's answer violates the rules of HTTP. The replica is alive and may answer other requests."""


class UpstreamRefusedError(UpstreamError):
    """The replica accepted no connection, so it has not received the request."""


class UpstreamLeftError(UpstreamRefusedError):
    """The replica left the rotation before it received the request. This is not a failure of the replica."""


class UpstreamUnreachableError(UpstreamRefusedError):
    """The replica accepted no connection in time."""

    status = 504


class UpstreamClosedError(UpstreamError):
    """The replica closed the connection before it began its answer."""


class UpstreamStaleError(UpstreamClosedError):
    """A kept connection was closed before or while it was reused. Most likely the request was not read."""


class UpstreamTimeoutError(UpstreamError):
    """The replica was silent for too long."""

    status = 504
