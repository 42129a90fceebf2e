"""The admin application: the load balancer's own paths `/rep`, `/add`, `/rm` and `/lb/…`, in Quart.

A handler reads the request, calls the fleet, and writes JSON. Errors are raised where they happen, and
`_answer_errors` alone turns them into answers.
"""

import asyncio
import hmac
import json
from collections.abc import AsyncIterator
from dataclasses import asdict
from email.utils import formatdate
from typing import Any

import structlog
from pydantic import SecretStr
from quart import Quart, Response, request
from quart_schema import (
    Info,
    OpenAPIProvider,
    QuartSchema,
    document_querystring,
    document_request,
    document_response,
    hide,
)
from quart_schema.openapi import HttpSecurityScheme
from quart_schema.typing import Model
from werkzeug.datastructures import Headers
from werkzeug.exceptions import HTTPException

from loadbalancer import __version__
from loadbalancer.admin.changes import MAX_BODY, Change, read_change
from loadbalancer.admin.cross_site import check_site
from loadbalancer.admin.schemas import FailureAnswer, MembersAnswer, SentenceAnswer, StateAnswer
from loadbalancer.answers import Answer, answer, failure
from loadbalancer.errors import UnauthorizedError
from loadbalancer.fleet.fleet import Fleet
from loadbalancer.telemetry.events import EventStream
from loadbalancer.telemetry.metrics import CONTENT_TYPE, Metrics

KEEP_ALIVE = 15.0
"""Seconds without an event after which `/lb/events` sends a comment, so that no proxy closes the stream."""

TOO_MANY_TO_ADD = "Length of hostname list is more than newly added instances"
TOO_MANY_TO_REMOVE = "Length of hostname list is more than removable instances"

log = structlog.get_logger(__name__)


class _Provider(OpenAPIProvider):
    """Makes the OpenAPI document; a list in a query is separated by commas (`hostnames=a,b`)."""

    def build_querystring_parameters(self, model: type[Model]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Build the parameters of a model."""
        parameters, definitions = super().build_querystring_parameters(model)
        return [{**parameter, "explode": False} for parameter in parameters], definitions


def create_admin(fleet: Fleet, metrics: Metrics, events: EventStream, admin_token: SecretStr | None) -> Quart:
    """Make the application.

    Args:
        fleet: The fleet that the application shows and changes.
        metrics: The metrics of `/lb/metrics`.
        events: The events of `/lb/events`.
        admin_token: The bearer token that `/add`, `/rm` and `/lb/…` require, or None.
    """
    app = Quart(__name__, static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = MAX_BODY
    app.config["RESPONSE_TIMEOUT"] = None  # an event stream has no end
    app.json.sort_keys = False  # type: ignore[attr-defined]
    QuartSchema(
        app,
        openapi_path="/lb/openapi.json",
        openapi_provider_class=_Provider,
        swagger_ui_path=None,
        redoc_ui_path=None,
        scalar_ui_path=None,
        info=Info("loadbalancer", __version__, description="A load balancer that owns its replicas."),
        security_schemes={"token": HttpSecurityScheme(scheme="bearer")} if admin_token else None,
        security=[{"token": []}] if admin_token else None,
    )
    _guard(app, admin_token)
    _answer_errors(app)
    _add_fleet_routes(app, fleet)
    _add_pages(app, fleet, metrics, events)
    return app


def _guard(app: Quart, admin_token: SecretStr | None) -> None:
    """Refuse changes by web pages of other sites and, if there is an admin token, requests without it."""

    @app.before_request
    async def check_site_of_page() -> None:
        check_site(request.method, request.path, request.headers)

    if admin_token is None:
        return
    expected = f"Bearer {admin_token.get_secret_value()}".encode()

    @app.before_request
    async def check_token() -> None:
        if request.path in ("/rep", "/lb/health"):
            return
        given = request.headers.get("Authorization", "")
        scheme, _, token = given.partition(" ")
        # The scheme's name is case-insensitive (RFC 9110, section 11.1), the token is not.
        if not hmac.compare_digest(f"{scheme.capitalize()} {token.strip()}".encode(), expected):
            raise UnauthorizedError(
                "this path requires the header 'Authorization: Bearer …' with the admin token"
            )


def _answer_errors(app: Quart) -> None:
    @app.errorhandler(HTTPException)
    async def http(error: HTTPException) -> Response:
        # Keep Werkzeug's headers, such as Allow, without those that describe its HTML page.
        headers = [
            (name, value)
            for name, value in error.get_headers()
            if name.lower() not in ("content-type", "content-length")
        ]
        match error.code:
            case 404:
                sentence = f"'{request.path}' does not exist"
            case 405:
                sentence = f"'{request.path}' does not accept {request.method}"
            case 413:
                sentence = f"the body is longer than {MAX_BODY} bytes"
            case _:
                sentence = error.description or error.name
        return _respond(failure(error.code or 500, sentence, tuple(headers)))

    @app.errorhandler(Exception)
    async def any_other(error: Exception) -> Response:
        ours = answer(error)
        if ours.status == 500:
            log.error("request failed", path=request.path, reason=str(error), exc_info=error)
        return _respond(ours)

    @app.after_request
    async def date(response: Response) -> Response:
        response.headers.setdefault("Date", formatdate(usegmt=True))
        return response


def _add_fleet_routes(app: Quart, fleet: Fleet) -> None:
    @app.get("/rep")
    @document_response(MembersAnswer)
    async def rep() -> Response:
        """List the replicas."""
        return _members(await fleet.members())

    @app.route("/add", methods=["POST", "GET"])
    @document_request(Change)
    @document_querystring(Change)
    @document_response(MembersAnswer)
    @document_response(FailureAnswer, 400)
    @document_response(FailureAnswer, 403)
    @document_response(FailureAnswer, 500)
    async def add() -> Response:
        """Start replicas. The answer comes once they are in rotation."""
        change = await _read(TOO_MANY_TO_ADD)
        return _members(await fleet.add(change.n, change.hostnames))

    @app.route("/rm", methods=["DELETE", "GET"])
    @document_request(Change)
    @document_querystring(Change)
    @document_response(MembersAnswer)
    @document_response(FailureAnswer, 400)
    @document_response(FailureAnswer, 403)
    @document_response(FailureAnswer, 500)
    async def rm() -> Response:
        """Remove replicas. The answer comes once they have drained and are gone."""
        change = await _read(TOO_MANY_TO_REMOVE)
        return _members(await fleet.remove(change.n, change.hostnames))


def _add_pages(app: Quart, fleet: Fleet, metrics: Metrics, events: EventStream) -> None:
    @app.get("/lb/health")
    @document_response(SentenceAnswer)
    @document_response(FailureAnswer, 503)
    async def health() -> Response:
        """Tell whether a replica is in rotation."""
        if fleet.serving:
            return _success("serving")
        return _respond(failure(503, "no replica is in rotation", (("Retry-After", "1"),)))

    @app.get("/lb/replicas")
    @document_response(StateAnswer)
    async def replicas() -> Response:
        """Show the state of every replica."""
        return _success(asdict(await fleet.describe()))

    @app.get("/lb/metrics")
    @hide
    async def prometheus() -> Response:
        """Show the metrics in Prometheus' text format."""
        return Response(metrics.render(), content_type=CONTENT_TYPE)

    @app.get("/lb/events")
    @hide
    async def stream() -> Response:
        """Send the whole state once, then each event of a replica's life, as server-sent events."""
        return Response(
            _events(fleet, events), content_type="text/event-stream", headers={"Cache-Control": "no-store"}
        )


async def _events(fleet: Fleet, events: EventStream) -> AsyncIterator[bytes]:
    listener = aiter(events.listen())
    upcoming = asyncio.ensure_future(anext(listener, None))
    try:
        await asyncio.sleep(0)  # The listener is registered before the state is read, so no event is lost.
        yield _event("fleet", asdict(await fleet.describe()))
        while True:
            await asyncio.wait({upcoming}, timeout=KEEP_ALIVE)
            if not upcoming.done():
                yield b": keep-alive\n\n"
            elif (event := upcoming.result()) is None:
                return
            else:
                yield _event(str(event["event"]), event)
                upcoming = asyncio.ensure_future(anext(listener, None))
    finally:
        upcoming.cancel()
        await asyncio.wait({upcoming})


def _event(name: str, data: Any) -> bytes:
    return f"event: {name}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n".encode()


async def _read(too_many_names: str) -> Change:
    body: bytes = await request.body
    return read_change(body, request.query_string.decode("latin-1"), too_many_names=too_many_names)


def _members(hostnames: list[str]) -> Response:
    return _success({"N": len(hostnames), "replicas": hostnames})


def _success(message: Any) -> Response:
    body = json.dumps({"message": message, "status": "successful"}, ensure_ascii=False)
    return _respond(Answer(200, body.encode(), (("Content-Type", "application/json"),)))


def _respond(ours: Answer) -> Response:
    return Response(ours.body, ours.status, Headers(ours.headers))
