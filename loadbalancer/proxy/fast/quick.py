"""The usual messages, read faster: a whole request, or a whole answer, that is all there is in one packet.

Only what needs no decision is taken: HTTP/1.1, kept connections, a body of known length or none. llhttp
validates the bytes, one regular expression finds the headers that mean something to a proxy, and the
validated bytes are passed on with those lines cut that go. Everything else is None here and goes the general
way, by `request_head` and `answer_head`. Tests hold both ways against each other: they must make the same of
the same bytes.
"""

import re
from collections.abc import Callable
from email.utils import formatdate
from http import HTTPStatus

import httptools

from loadbalancer.proxy.fast.answer_head import BODILESS
from loadbalancer.proxy.fast.limits import Limits
from loadbalancer.proxy.fast.request_head import HOST
from loadbalancer.proxy.headers import HOP_BY_HOP, MEANT_NAMES, TRAILER
from loadbalancer.routing.keys import KeyRule

COLLECTED = 16 * 1024
"""Bytes of the longest body that is collected until the answer is whole."""

REQUEST_LINE = re.compile(
    rb"(?!HEAD )([A-Z]{3,16}) "
    rb"(/(?!(?:rep|add|rm)[? ]|lb[/? ]|%|[ral][^/? ]{0,2}%)[^\x00-\x20\x7f-\xff#]*+) HTTP/1\.1\r\n"
)
"""Of a request that is not HEAD, and whose target is no admin path, nor could be one percent-encoded."""

STATUS_LINES = {b"HTTP/1.1 %d " % status: int(status) for status in HTTPStatus if status >= HTTPStatus.OK}
"""The beginnings of status lines, as far as the reason phrase; other statuses go the general way."""


def _meant(names: bytes, initials: bytes) -> re.Pattern[bytes]:
    """A pattern that finds the lines of some headers: (line, name, value).

    The line feed in front is searched for fast, and the look-ahead at the initials spares most of the names.
    """
    return re.compile(rb"\n(?=[%b])(((?i:%b)):[ \t]*+([^\r]*+)\r)" % (initials, names))


REQUEST_HEADERS = _meant(MEANT_NAMES, b"CEFHKPTUXcefhkptux")
"""Headers of a request that mean something to a proxy."""

ANSWER_HEADERS = _meant(b"|".join({b"content-length", b"date", TRAILER} | HOP_BY_HOP), b"CDHKPTUcdhkptu")
"""The same of an answer."""


HOST_LINE, LENGTH, CONNECTION, REQUEST_ID, FORWARDING, DATE, CUT = range(7)
"""What a header is to a proxy; CUT: its line goes. (Not an enumeration, whose members are slow to look
up.)"""


def _spelled(roles: dict[bytes, int]) -> dict[bytes, int]:
    """The roles by the usual spellings of the names."""
    return {spelling: role for name, role in roles.items() for spelling in (name, name.title())}


IN_REQUESTS = _spelled(
    {
        b"host": HOST_LINE,
        b"content-length": LENGTH,
        b"connection": CONNECTION,
        b"x-request-id": REQUEST_ID,
        b"x-forwarded-for": FORWARDING,
        b"x-forwarded-proto": FORWARDING,
        b"x-forwarded-host": FORWARDING,
        b"x-forwarded-port": FORWARDING,
        b"x-real-ip": FORWARDING,
        b"forwarded": FORWARDING,
        b"keep-alive": CUT,
        b"proxy-connection": CUT,
    }
) | {b"X-Real-IP": FORWARDING, b"X-Request-ID": REQUEST_ID}

IN_ANSWERS = _spelled(
    {
        b"content-length": LENGTH,
        b"connection": CONNECTION,
        b"date": DATE,
        b"keep-alive": CUT,
    }
)

CR = ord("\r")

_KEEP_ALIVE = frozenset({b"keep-alive", b"Keep-Alive"})
_CLOSE = frozenset({b"close", b"Close"})


class Validator:
    """Has llhttp look at whole messages; a rejected one leaves no trace.

    Args:
        kind: Of llhttp's parsers.
    """

    __slots__ = ("_complete", "_kind", "_parser")

    def __init__(self, kind: type[httptools.HttpRequestParser] | type[httptools.HttpResponseParser]) -> None:
        self._kind = kind
        self._renew()

    def _renew(self) -> None:
        self._complete = _Complete()
        self._parser = self._kind(self._complete)

    def accepts(self, message: bytes) -> bool:
        """Whether the bytes are one whole message.

        Args:
            message: Bytes of a kept connection, beginning at the beginning of a message.
        """
        complete = self._complete
        complete.messages = 0
        try:
            self._parser.feed_data(message)
        except httptools.HttpParserError:
            self._renew()
            return False
        except httptools.HttpParserUpgrade:
            self._renew()
            return False
        if complete.messages == 1:
            return True
        self._renew()
        return False


class _Complete:
    """What llhttp calls at the end of each message."""

    __slots__ = ("messages",)

    def __init__(self) -> None:
        self.messages = 0

    def on_message_complete(self) -> None:
        self.messages += 1


QuickRequest = tuple[bytes, bytes, bytes, bytes, bytes, bool]
"""A usual request: its target, its lines as a replica gets them (without the empty one, and more are added),
the values of Host and of X-Request-Id (empty if there is none), its body, and whether the connection goes on
after it. (A plain tuple is the fastest to make.)"""


def read_request(data: bytes, limits: Limits, trusted: bool) -> QuickRequest | None:
    """Read a packet as a usual request; llhttp has still to accept it.

    Args:
        data: The packet, which begins with a request.
        limits: Bounds.
        trusted: Whether the peer's forwarding headers are believed.

    Returns:
        The request, or None if it must go the general way.
    """
    line = REQUEST_LINE.match(data)
    if line is None:
        return None
    begin = line.end() - 1
    end = data.find(b"\r\n\r\n", begin - 1) + 4
    target = line[2]
    if (
        not 4 <= end <= limits.head
        or len(target) > limits.target
        # A header has four bytes at least.
        or (end > 4 * limits.headers and data.count(b"\n", 0, end) - 2 > limits.headers)
    ):
        return None
    size = len(data)
    head = data[: end - 2]
    host = request_id = b""
    length = 0
    keeps = True
    for cut, name, value in REQUEST_HEADERS.findall(data, begin, end - 3):
        role = IN_REQUESTS.get(name)
        if role is HOST_LINE:
            if host or not HOST.fullmatch(value):
                return None
            host = value
        elif (
            role is CUT
            or (role is CONNECTION and value in _KEEP_ALIVE)
            or (role is FORWARDING and not trusted)
        ):
            head = head.replace(b"\n" + cut, b"", 1)
        elif role is REQUEST_ID:
            if request_id or not value or value[-1:] in b" \t":
                return None
            request_id = value
        elif role is CONNECTION and value in _CLOSE and keeps:
            keeps = False
            head = head.replace(b"\n" + cut, b"", 1)
        elif role is LENGTH and not length and value.isdigit() and len(value) < 10:
            length = int(value)
        else:
            return None
    if not host or size != end + length or (limits.body and length > limits.body):
        return None
    return target, head, host, request_id, data[end:], keeps


def read_answer(data: bytes) -> tuple[int, bytes] | bool:
    """Read a packet as a usual answer to a usual request; llhttp has still to accept it.

    Args:
        data: The packet, which begins with an answer.

    Returns:
        The status, and the answer as a client gets it. True: it is the beginning of a usual answer with a
        short body, and the rest has yet to come. False: it must go the general way.
    """
    status = STATUS_LINES.get(data[:13])
    end = data.find(b"\r\n\r\n") + 4
    if status is None or end < 4 or data[13] == CR:
        return False
    answer = data
    length = -1
    dated = False
    for cut, name, value in ANSWER_HEADERS.findall(data, 13, end - 3):
        role = IN_ANSWERS.get(name)
        if role is LENGTH and length < 0 and value.isdigit() and len(value) < 10:
            length = int(value)
        elif role is DATE:
            dated = True
        elif role is CUT or (role is CONNECTION and value in _KEEP_ALIVE):
            answer = answer.replace(b"\n" + cut, b"", 1)
        else:
            return False
    if status in BODILESS:
        if length >= 0 or len(data) != end:
            return False
    elif length < 0 or len(data) != end + length:
        return 0 <= length <= COLLECTED and len(data) < end + length
    if not dated:
        answer = answer.replace(b"\r\n\r\n", b"\r\ndate: %b\r\n\r\n" % formatdate(usegmt=True).encode(), 1)
    return status, answer


KeyFinder = Callable[[bytes, bytes, str, str], str]
"""Takes the key of a usual request: (head, target, address of the client, request id) → key."""


def key_finder(rule: KeyRule) -> KeyFinder | None:
    """What takes the key by a rule, from the bytes of a head, as the rule takes it from a list of headers.

    Args:
        rule: What is hashed.

    Returns:
        None if the key is the request id.
    """
    if rule.source == "request-id":
        return None
    if rule.source == "cookie":
        return _cookie_finder(rule.name)
    values = re.compile(rb"\n(?i:%b):[ \t]*+([^\r]*+)" % re.escape(rule.name)) if rule.name else None

    def key(head: bytes, target: bytes, client: str, request_id: str) -> str:
        path, _, query = target.partition(b"?")
        headers = [(rule.name, value) for value in values.findall(head)] if values else []
        return rule.key(headers, path, query, client, request_id)

    return key


def _cookie_finder(name: bytes) -> KeyFinder:
    """What finds the first cookie of a name that is not empty, without a list of all cookies."""
    pattern = rb"\n(?i:cookie):(?:[^;\r]*+;)*?[ \t]*+%b[ \t]*+=[ \t]*+([^;\r \t][^;\r]*+)"
    search = re.compile(pattern % re.escape(name)).search

    def key(head: bytes, target: bytes, client: str, request_id: str) -> str:
        found = search(head)
        return request_id if found is None else found[1].strip(b" \t").decode("latin-1")

    return key
