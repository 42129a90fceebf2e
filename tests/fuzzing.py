"""Shared by the fuzz tests: corpora, mutations, and the number of examples.

The environment variable FUZZ multiplies the number of examples. `make fuzz` sets it, `make test` does not.
"""

import os
from itertools import pairwise
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st

TIMES = int(os.environ.get("FUZZ", "1"))
"""Factor of the number of examples."""

REQUESTS = [
    b"GET /a?b=c HTTP/1.1\r\nHost: x\r\n\r\n",
    b"POST /p HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello",
    b"PUT /c HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"5\r\nhello\r\n3;a=b\r\nabc\r\n0\r\nT: 1\r\n\r\n",
    b"HEAD / HTTP/1.0\r\nConnection: keep-alive\r\nX-Forwarded-For: 10.0.0.1\r\n\r\n",
    b"GET http://h.example/x HTTP/1.1\r\nHost: y\r\nConnection: X-Hop, close\r\nX-Hop: 1\r\n\r\n",
    b"GET /ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
    b"POST /e HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\nok",
    b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n",
]

ANSWERS = [
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n3;x=y\r\nabc\r\n0\r\nT: 1\r\n\r\n",
    b"HTTP/1.1 204 No Content\r\nX-A: 1\r\n\r\n",
    b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n",
    b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    b"HTTP/1.0 200 OK\r\n\r\nuntil the end",
    b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 302 Found\r\nLocation: /x\r\nContent-Length: 0\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\n\r\n",
]

ODD_BYTES = [
    b"\x00",
    b"\r",
    b"\n",
    b"\r\n",
    b" ",
    b"\t",
    b":",
    b"\x7f",
    b"\xff",
    b"Content-Length: 3\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"0",
    b"GET ",
    b"HTTP/1.1 ",
]


def tried(usual: int, **options: Any) -> settings:
    """Settings of a fuzz test. `make test` tries the same examples each time, `make fuzz` new ones.

    Args:
        usual: Number of examples of `make test`.
        options: Further settings of Hypothesis.
    """
    return settings(max_examples=usual * TIMES, derandomize=TIMES == 1, deadline=None, **options)


@st.composite
def mutated(draw: st.DrawFn, corpus: list[bytes], most: int = 3) -> bytes:
    """Join messages of a corpus, and mutate the bytes in up to four places.

    Args:
        draw: Draws the choices.
        corpus: Messages to choose from.
        most: Largest number of messages.
    """
    data = b"".join(draw(st.lists(st.sampled_from(corpus), min_size=1, max_size=most)))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        match draw(st.sampled_from(["insert", "delete", "flip"])):
            case "insert":
                data = data[:at] + draw(st.sampled_from(ODD_BYTES)) + data[at:]
            case "delete":
                data = data[:at] + data[at + draw(st.integers(1, 4)) :]
            case "flip":
                data = data[:at] + bytes([draw(st.integers(0, 255))]) + data[at + 1 :]
    return data


def cut(data: bytes, places: list[int]) -> list[bytes]:
    """Cut bytes at some places, and return the parts."""
    ends = sorted({0, len(data), *(place for place in places if place < len(data))})
    return [data[begin:end] for begin, end in pairwise(ends)]
