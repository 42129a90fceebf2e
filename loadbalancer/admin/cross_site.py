"""A change is refused when a web page from elsewhere has a browser ask for it (cross-site request forgery).

A browser on a network where the load balancer can be reached would send such requests for any page that it
shows. It says where they come from, in headers that no page can forge: `Sec-Fetch-Site` (W3C Fetch Metadata)
and `Origin` (RFC 6454, section 7). Programs such as curl send neither, and pass. Reading is left to the
browser, which shows no page an answer from elsewhere.
"""

import re

from werkzeug.datastructures import Headers

from loadbalancer.errors import ForbiddenError

_READS = frozenset({"GET", "HEAD", "OPTIONS"})
"""Methods that change nothing (RFC 9110, section 9.2.1), with the exception below."""

_CHANGED_BY_GET = frozenset({"/add", "/rm"})
"""Paths that take `GET` for plain curl; `HEAD` comes with it."""

_OWN_SITE = frozenset({"same-origin", "none"})
"""Values of Sec-Fetch-Site when the page is our own, and when the user has typed the address."""

_BROWSER = "mozilla/"
"""How the User-Agent of every browser begins, in lower case."""

_ORIGIN = re.compile(r"https?://([^/?#@\s]+)", re.IGNORECASE)
_DEFAULT_PORT = re.compile(r":(?:80|443)$")


def is_change(method: str, path: str) -> bool:
    """Whether a request may change something.

    Args:
        method: As sent.
        path: Percent-decoded, without the query.
    """
    return method not in _READS or (path in _CHANGED_BY_GET and method != "OPTIONS")


def check_site(method: str, path: str, headers: Headers) -> None:
    """Refuse a change that a page from elsewhere asks for.

    Args:
        method: As sent.
        path: Percent-decoded, without the query.
        headers: Of the request.

    Raises:
        ForbiddenError: It is one; the text says how that is known.
    """
    if not is_change(method, path):
        return
    sites, origins = headers.getlist("Sec-Fetch-Site"), headers.getlist("Origin")
    for site in sites:
        if site not in _OWN_SITE:
            raise ForbiddenError(
                f"a web page from elsewhere cannot change anything: Sec-Fetch-Site is '{site}'"
            )
    host = headers.get("Host", "")
    for origin in origins:
        if not _is_own(origin, host):
            raise ForbiddenError(
                f"a web page from elsewhere cannot change anything: Origin is '{origin}' but Host is '{host}'"
            )
    # Over plain HTTP to another machine browsers send no Sec-Fetch-Site, and with a GET, as for an image,
    # no Origin either: then nothing tells a page of ours from another.
    told = bool(sites or origins)
    if method in _READS and not told and headers.get("User-Agent", "").lower().startswith(_BROWSER):
        raise ForbiddenError(
            f"this browser does not say which page wants to {method} {path}: use POST, DELETE or curl"
        )


def _is_own(origin: str, host: str) -> bool:
    """Whether an origin is the one that was asked, but for the scheme: TLS may end in front of us."""
    match = _ORIGIN.fullmatch(origin)
    return match is not None and _authority(match[1]) == _authority(host)


def _authority(text: str) -> str:
    return _DEFAULT_PORT.sub("", text.strip().lower())
