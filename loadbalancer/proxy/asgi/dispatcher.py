"""The ASGI application in front of two: admin paths go to the admin application, all others to the lane.

It stands before Quart's routing, which normalises paths and answers for methods that it does not know.
So a replica's request reaches the lane as the client sent it.
"""

import re
from urllib.parse import unquote

from hypercorn.typing import (
    ASGIFramework,
    ASGIReceiveCallable,
    ASGISendCallable,
    ASGISendEvent,
    HTTPScope,
    Scope,
)

from loadbalancer.answers import answer
from loadbalancer.errors import BadRequestError, LoadBalancerError, NotImplementedByUsError
from loadbalancer.proxy.admin_paths import is_admin
from loadbalancer.proxy.asgi.client import Client

_ABSOLUTE_FORM = re.compile(r"https?://(?:[^/?#@]*@)?([^/?#@]+)(/[^?#]*)?", re.IGNORECASE)
"""An absolute target without its query, which ASGI keeps apart: its authority and its path."""


class Dispatcher:
    """An ASGI application in front of two.

    Args:
        admin: Answers for the admin paths.
        lane: Passes everything else on.
    """

    def __init__(self, admin: ASGIFramework, lane: ASGIFramework) -> None:
        self._admin = admin
        self._lane = lane
        self.closing = False
        """Whether answers tell their clients that the connection ends with them."""

    async def __call__(self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        """Hand the request on."""
        if scope["type"] == "lifespan":
            # Nothing waits for it: `app` opens and closes what there is.
            await receive()
            await send({"type": "lifespan.startup.complete"})
            return
        if scope["type"] == "http":
            send = self._telling_when_closing(send)
        if scope["type"] == "http" and (not scope["raw_path"].startswith(b"/") or b"#" in scope["raw_path"]):
            try:
                scope = _in_origin_form(scope)
            except LoadBalancerError as error:
                await Client(receive, send).answer(answer(error))
                return
        await (self._admin if is_admin(scope["path"]) else self._lane)(scope, receive, send)

    def _telling_when_closing(self, send: ASGISendCallable) -> ASGISendCallable:
        async def tell(message: ASGISendEvent) -> None:
            if self.closing and message["type"] == "http.response.start":
                headers = [*message["headers"], (b"connection", b"close")]
                message = {**message, "headers": headers}
            await send(message)

        return tell


def _in_origin_form(scope: HTTPScope) -> HTTPScope:
    """Rewrite an absolute-form target, whose authority overrides `Host` (RFC 9112, section 3.2.2).

    Raises:
        BadRequestError: The target is in no form that a server takes.
        NotImplementedByUsError: It asks for a tunnel.
    """
    raw = scope["raw_path"].decode("ascii")
    if scope["method"] == "CONNECT":
        raise NotImplementedByUsError("CONNECT is for forward proxies, which this is not")
    target = _ABSOLUTE_FORM.fullmatch(raw)
    if target is None:
        raise BadRequestError(f"the request target '{raw}' is neither a path nor an absolute URL")
    authority, path = target[1], target[2] or "/"
    headers = [(name, value) for name, value in scope["headers"] if name != b"host"]
    headers.append((b"host", authority.encode()))
    return {**scope, "path": unquote(path), "raw_path": path.encode(), "headers": headers}
