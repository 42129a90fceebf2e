"""Errors that users may see, as types.

The code raises an error where it is known, with a sentence for the person who caused it or must mend it.
The error travels untouched to the edge (the admin application, a lane, the command line), where
`answers.answer` makes JSON of it. Only these types reach a client: any other exception is a defect of ours,
logged with its traceback and answered as a bare 500.
"""

import errno


class DefectError(Exception):
    """The load balancer is at fault: its parts are in an impossible state. The text is for the log."""


class LoadBalancerError(Exception):
    """Base of all errors whose text is meant for users; `status` is the HTTP status of the answer."""

    status = 500
    headers: tuple[tuple[str, str], ...] = ()


class BadRequestError(LoadBalancerError):
    """The request cannot be done as asked, and nothing was changed."""

    status = 400


class HeadTooLargeError(BadRequestError):
    """The head of a request is beyond the bounds."""

    def __init__(self, sentence: str, status: int = 431) -> None:
        super().__init__(sentence)
        self.status = status


class BodyTooLargeError(BadRequestError):
    """The body of a request is beyond the bound.

    Args:
        limit: The bound, in bytes.
    """

    status = 413

    def __init__(self, limit: int) -> None:
        super().__init__(f"the body is longer than {limit} bytes")


class HeadTimeoutError(BadRequestError):
    """The head of a request did not come in time."""

    status = 408


class UnauthorizedError(LoadBalancerError):
    """The admin token is missing or wrong."""

    status = 401
    headers = (("WWW-Authenticate", "Bearer"),)


class ForbiddenError(LoadBalancerError):
    """The request may not be done for whoever asks, and nothing was changed."""

    status = 403


class NotImplementedByUsError(LoadBalancerError):
    """The request asks for something that a load balancer does not do."""

    status = 501


class BackendError(LoadBalancerError):
    """A replica cannot be started, stopped or listed; the text says why and what to do about it."""


class EngineAwayError(BackendError):
    """Whatever runs replicas cannot be reached just now: nothing is wrong with the replica itself."""


class ClosingError(LoadBalancerError):
    """The load balancer is shutting down and changes nothing any more."""

    status = 503
    headers = (("Retry-After", "1"),)


class TooManyConnectionsError(LoadBalancerError):
    """There are as many connections as there may be."""

    status = 503
    headers = (("Retry-After", "1"),)


class NoReplicaError(LoadBalancerError):
    """No replica is in rotation."""

    status = 503
    headers = (("Retry-After", "1"),)


class ExhaustedError(LoadBalancerError):
    """The load balancer has no files, ports or memory left for a connection: no replica is to blame."""

    status = 503
    headers = (("Retry-After", "1"),)


_OWN_LIMITS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL})


def is_own_limit(error: OSError) -> bool:
    """Whether a connection failed for want of something on our side, rather than the other's."""
    return error.errno in _OWN_LIMITS


class UpstreamError(LoadBalancerError):
    """The replica answered garbage, or broke off in the middle of its answer."""

    status = 502


class UpstreamGarbledError(UpstreamError):
    """The replica's answer breaks the rules of HTTP; it is alive, and may answer other requests well."""


class UpstreamRefusedError(UpstreamError):
    """The replica accepted no connection: it knows nothing of the request."""


class UpstreamLeftError(UpstreamRefusedError):
    """The replica left the rotation before it got the request; that does not count against it."""


class UpstreamUnreachableError(UpstreamRefusedError):
    """The replica accepted no connection in time."""

    status = 504


class UpstreamClosedError(UpstreamError):
    """The replica broke the connection before it had begun an answer."""


class UpstreamStaleError(UpstreamClosedError):
    """A kept connection had ended, or ended as it was used again: most likely nobody has read the request."""


class UpstreamTimeoutError(UpstreamError):
    """The replica was silent for too long."""

    status = 504
