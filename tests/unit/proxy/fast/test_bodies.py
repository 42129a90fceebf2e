"""Where bodies end: the readers, cut anywhere."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadbalancer.proxy.fast.bodies import (
    BodyFramingError,
    BodyReader,
    ChunkedReader,
    LengthReader,
    TrailersTooLargeError,
    UntilCloseReader,
    allowed_trailers,
)
from tests.fuzzing import cut, tried

NEXT = b"GET /next HTTP/1.1\r\nHost: x\r\n\r\n"


def read(reader: BodyReader, parts: list[bytes]) -> tuple[bytes, bytes]:
    """The body, and what comes after it."""
    body = rest = b""
    for part in parts:
        if reader.whole:
            rest += part
        else:
            got, rest = reader.read(part)
            body += got
    return body, rest


@st.composite
def chunked(draw: st.DrawFn) -> tuple[bytes, bytes, list[tuple[bytes, bytes]]]:
    """A body in chunks, with chunk extensions and trailers; its bytes, and the trailers."""
    chunks = draw(st.lists(st.sampled_from([b"x", b"\r\n\r\n", b"0\r\n\r\n", NEXT, b"a" * 300]), max_size=4))
    extensions = st.sampled_from([b"", b";a", b";a=b", b';a="b c"'])
    sizes = st.sampled_from([b"%x", b"%X", b"0%x"])
    data = b"".join(
        draw(sizes) % len(chunk) + draw(extensions) + b"\r\n" + chunk + b"\r\n" for chunk in chunks
    )
    trailers = draw(st.lists(st.tuples(st.sampled_from([b"x-a", b"x-b"]), st.sampled_from([b"1", b""]))))
    lines = b"".join(b"%b: %b\r\n" % trailer for trailer in trailers)
    return data + b"0" + draw(extensions) + b"\r\n" + lines + b"\r\n", b"".join(chunks), trailers


@tried(200)
@given(chunked(), st.sampled_from([b"", NEXT, b"\r\n" + NEXT, b"0\r\n\r\n"]), st.lists(st.integers(0, 600)))
def test_chunks_end_where_they_end_however_they_are_cut(
    made: tuple[bytes, bytes, list[tuple[bytes, bytes]]], after: bytes, places: list[int]
) -> None:
    data, body, trailers = made
    reader = ChunkedReader(10_000)
    assert read(reader, cut(data + after, places)) == (body, after)
    assert reader.whole
    assert allowed_trailers(reader) == trailers


@pytest.mark.parametrize("after", [b"", NEXT])
def test_chunks_byte_by_byte(after: bytes) -> None:
    data = b"5;a=b\r\nhello\r\n4\r\n\r\n\r\n\r\n0\r\nT: 1\r\n\r\n"
    reader = ChunkedReader(1000)
    assert read(reader, [bytes([byte]) for byte in data + after]) == (b"hello\r\n\r\n", after)


@given(st.integers(0, 20), st.lists(st.binary(min_size=1, max_size=7), max_size=6))
def test_a_length_is_a_length(length: int, parts: list[bytes]) -> None:
    reader = LengthReader(length)
    data = b"".join(parts)
    body, rest = read(reader, parts)
    assert (body, rest) == (data[:length], data[length:])
    assert reader.whole is (len(data) >= length)


def test_a_body_until_the_end_is_never_whole_by_itself() -> None:
    reader = UntilCloseReader()
    assert read(reader, [b"a", NEXT]) == (b"a" + NEXT, b"")
    assert not reader.whole


@pytest.mark.parametrize(
    "data",
    [
        *(b"5\nhello\n0\n\n", b"zz\r\n", b"-1\r\n", b"+5\r\nhello\r\n", b" 5\r\nhello\r\n", b"\r\n"),
        *(b"5\r\nhelloX\r\n", b"5\r\nhello\r\n0\r\nA B: c\r\n\r\n", b"f" * 17 + b"\r\n"),
    ],
)
@pytest.mark.parametrize("bytewise", [False, True])
def test_broken_chunks_are_seen(data: bytes, bytewise: bool) -> None:
    with pytest.raises(BodyFramingError):
        read(ChunkedReader(1000), [bytes([byte]) for byte in data] if bytewise else [data])


@pytest.mark.parametrize(
    ("piece", "times"),
    [(b"0\r\n" + b"X-A: b\r\n", 1), (b"X-A: 0123456789\r\n", 200), (b"A:\r\n", 101)],
    ids=["few", "large", "many"],
)
@pytest.mark.parametrize("together", [False, True])
def test_trailers_are_bounded(piece: bytes, times: int, together: bool) -> None:
    pieces = [piece] * times if times > 1 else []
    parts = [b"1\r\nx\r\n0\r\n", *pieces, b"\r\n"]
    reader = ChunkedReader(1000)
    if times == 1:
        read(reader, [b"".join(parts)] if together else parts)
        assert reader.whole
    else:
        with pytest.raises(TrailersTooLargeError):
            read(reader, [b"".join(parts)] if together else parts)


@pytest.mark.parametrize("size", [1, 50])
def test_an_endless_extension_is_bounded(size: int) -> None:
    with pytest.raises(TrailersTooLargeError):
        read(ChunkedReader(1000), [b"5;", *[b"x" * size] * (1100 // size)])


def test_many_short_chunks_are_no_endless_framing() -> None:
    reader = ChunkedReader(100)
    body, _ = read(reader, [b"1\r\n", b"x", b"\r\n"] * 500 + [b"0\r\n\r\n"])
    assert (len(body), reader.whole) == (500, True)


@pytest.mark.parametrize(
    "name",
    [
        *(b"Host", b"X-Forwarded-For", b"X_Forwarded_For", b"Forwarded", b"X-Request-Id", b"Cookie", b"TE"),
        *(b"Trailer", b"Expect", b"Authorization", b"Content-Type", b"Set-Cookie"),
    ],
)
def test_what_may_not_be_a_trailer_is_dropped(name: bytes) -> None:
    """RFC 9110, section 6.5.1."""
    reader = ChunkedReader(1000)
    read(reader, [b"0\r\n" + name + b": 1\r\nX-Sum: 1\r\n\r\n"])
    assert allowed_trailers(reader) == [(b"x-sum", b"1")]


@pytest.mark.parametrize(
    "trailers", [b"Content-Length: 9", b"Transfer-Encoding: chunked", b"Connection: upgrade\r\nUpgrade: echo"]
)
def test_a_trailer_changes_nothing_of_the_framing(trailers: bytes) -> None:
    reader = ChunkedReader(1000)
    try:
        body, rest = read(reader, [b"2\r\nab\r\n0\r\n" + trailers + b"\r\n\r\n" + NEXT])
    except BodyFramingError:
        return  # it is refused: nothing after it is read
    assert (body, rest, reader.whole, allowed_trailers(reader)) == (b"ab", NEXT, True, [])
