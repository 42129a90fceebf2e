"""The ASGI application in front of two: admin paths go to the admin application, all others to the lane.

It stands before Quart's routing, which normalises paths and answers for methods that it does not know.
So a replica's request reaches the lane as the client sent it.
"""

import re
from urllib.parse import unquote

from hypercorn.typing import (
    ASGIFramework,
    ASGIReceiveCallable,
    ASGIReceiveEvent,
    ASGISendCallable,
    ASGISendEvent,
    HTTPScope,
    Scope,
    WebsocketScope,
)

from loadbalancer.answers import answer, encode
from loadbalancer.errors import BadRequestError, LoadBalancerError, NotImplementedByUsError
from loadbalancer.proxy.admin_paths import is_admin
from loadbalancer.proxy.asgi.client import Client
from loadbalancer.proxy.asgi.client_streams import CONTINUE
from loadbalancer.proxy.asgi.request_head import check, expects_continue
from loadbalancer.proxy.asgi.websocket import refuse
from loadbalancer.proxy.headers import Header

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
        """Hand the request on, or refuse it."""
        if scope["type"] == "lifespan":
            return  # `app` opens and closes what there is
        if scope["type"] == "http":
            send = self._telling_when_closing(send)
            try:
                check(scope)
                receive = _asking_for_the_body(scope, receive, send)
                scope = _in_origin_form(scope)
            except LoadBalancerError as error:
                await Client(receive, send).answer(answer(error), *_closing(scope))
                return
        else:
            try:
                check(scope)
            except LoadBalancerError as error:
                ours = answer(error)
                await receive()  # websocket.connect
                await refuse(send, ours.status, [*encode(ours), *_closing(scope)], ours.body)
                return
        await (self._admin if is_admin(scope["path"]) else self._lane)(scope, receive, send)

    def _telling_when_closing(self, send: ASGISendCallable) -> ASGISendCallable:
        async def tell(message: ASGISendEvent) -> None:
            if self.closing and message["type"] == "http.response.start":
                headers = [*message["headers"], (b"connection", b"close")]
                message = {**message, "headers": headers}
            await send(message)

        return tell


def _asking_for_the_body(
    scope: HTTPScope, receive: ASGIReceiveCallable, send: ASGISendCallable
) -> ASGIReceiveCallable:
    """Have a body that the client holds back asked for when the application receives (RFC 9110, 10.1.1)."""
    if not expects_continue(scope):
        return receive
    asked = False

    async def ask() -> ASGIReceiveEvent:
        nonlocal asked
        if not asked:
            asked = True
            await send(CONTINUE)
        return await receive()

    return ask


def _closing(scope: HTTPScope | WebsocketScope) -> list[Header]:
    """What tells the client of a refused request that the connection ends: its body is not read."""
    return [] if scope["http_version"] == "2" else [(b"connection", b"close")]


def _in_origin_form(scope: HTTPScope) -> HTTPScope:
    """Rewrite an absolute-form target, whose authority overrides `Host` (RFC 9112, section 3.2.2).

    The origin form, and the asterisk form of OPTIONS, stay as they are.

    Raises:
        BadRequestError: The target is in no form that a server takes.
        NotImplementedByUsError: It asks for a tunnel.
    """
    raw = scope["raw_path"].decode("ascii")
    if scope["method"] == "CONNECT":
        raise NotImplementedByUsError("CONNECT is for forward proxies, which this is not")
    if "#" in raw:
        raise BadRequestError("a request target has no fragment")
    server_wide = scope["method"] == "OPTIONS" and not scope["query_string"]
    if raw.startswith("/") or (raw == "*" and server_wide):
        return scope
    target = _ABSOLUTE_FORM.fullmatch(raw)
    if target is None:
        raise BadRequestError(f"the request target '{raw[:80]}' is neither a path nor an absolute URL")
    # RFC 9112, section 3.2.4.
    authority, path = target[1], target[2] or ("*" if server_wide else "/")
    headers = [(name, value) for name, value in scope["headers"] if name != b"host"]
    headers.append((b"host", authority.encode()))
    return {**scope, "path": unquote(path), "raw_path": path.encode(), "headers": headers}
