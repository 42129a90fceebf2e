"""Protection from cross-site request forgery: a web page of another site cannot change anything.

A browser that can reach the load balancer sends requests for any page that it shows. It names the site of the
page in headers that the page cannot forge: `Sec-Fetch-Site` (W3C Fetch Metadata) and `Origin` (RFC 6454,
section 7). Programs such as curl send neither header, and their requests pass. Requests that only read pass
too, because browsers do not let a page read answers of other sites.
"""

import re

from werkzeug.datastructures import Headers

from loadbalancer.errors import ForbiddenError

_READS = frozenset({"GET", "HEAD", "OPTIONS"})
"""Methods that change nothing (RFC 9110, section 9.2.1), except on the paths below."""

_CHANGED_BY_GET = frozenset({"/add", "/rm"})
"""Paths that also accept `GET`, and thereby `HEAD`, for plain curl."""

_OWN_SITE = frozenset({"same-origin", "none"})
"""Values of Sec-Fetch-Site for a page of this site, and for an address that the user has typed."""

_BROWSER = "mozilla/"
"""The beginning of every browser's User-Agent, in lower case."""

_ORIGIN = re.compile(r"https?://([^/?#@\s]+)", re.IGNORECASE)
_DEFAULT_PORT = re.compile(r":(?:80|443)$")


def is_change(method: str, path: str) -> bool:
    """Whether a request may change something.

    Args:
        method: The method as sent.
        path: The percent-decoded path, without the query.
    """
    return method not in _READS or (path in _CHANGED_BY_GET and method != "OPTIONS")


def check_site(method: str, path: str, headers: Headers) -> None:
    """Refuse a change that a web page of another site requests.

    Args:
        method: The method as sent.
        path: The percent-decoded path, without the query.
        headers: The headers of the request.

    Raises:
        ForbiddenError: The request is such a change. The text names the header that shows it.
    """
    if not is_change(method, path):
        return
    sites, origins = headers.getlist("Sec-Fetch-Site"), headers.getlist("Origin")
    for site in sites:
        if site not in _OWN_SITE:
            raise ForbiddenError(
                f"a web page of another site cannot change anything: Sec-Fetch-Site is '{site}'"
            )
    host = headers.get("Host", "")
    for origin in origins:
        if not _is_own(origin, host):
            raise ForbiddenError(
                f"a web page of another site cannot change anything: Origin is '{origin}', Host is '{host}'"
            )
    # Over plain HTTP to another machine, browsers send no Sec-Fetch-Site. With a GET, for example
    # for an image, they send no Origin either. The page may then be of any site.
    site_known = bool(sites or origins)
    if method in _READS and not site_known and headers.get("User-Agent", "").lower().startswith(_BROWSER):
        raise ForbiddenError(
            f"the browser does not name the page that sends {method} {path}: use POST, DELETE or curl"
        )


def _is_own(origin: str, host: str) -> bool:
    """Whether an origin and a Host header name the same site.

    The scheme is not compared, because a proxy in front of the load balancer may terminate TLS.
    """
    match = _ORIGIN.fullmatch(origin)
    return match is not None and _authority(match[1]) == _authority(host)


def _authority(text: str) -> str:
    return _DEFAULT_PORT.sub("", text.strip().lower())
