"""Many clients and many connections to replicas on one lane, their packets cut and mixed at random.

Each client gets exactly its own answers, and replicas see exactly the requests that were sent.
"""

import asyncio
import random
from collections import Counter
from dataclasses import dataclass, field

from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from tests.fuzzing import tried
from tests.unit.proxy.fast.echoing import ANSWERS, Expected, Replica, Seen
from tests.unit.proxy.fast.messages import CHROME, CURL
from tests.unit.proxy.fast.rig import Wire, rig

BODIES = [
    b"",
    b"hello",
    b"GET /admin HTTP/1.1\r\nHost: x\r\n\r\n",
    b"0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    b"x" * 70_000,
]
TUNNELLED = b"GET /tunnelled HTTP/1.1\r\nHost: x\r\n\r\n"
HALF_HEAD = b"GET /half HTTP/1.1\r\nHost: x\r\nX-Pad: "

PACKETS = [1, 3, 20, 60, 200, 5000, 1 << 20]
"""Sizes of packets; the last is everything that there is."""


@dataclass
class Script:
    """What one client sends."""

    requests: list[Expected] = field(default_factory=list)
    data: bytes = b""
    after: bytes = b""
    """What it sends through a tunnel at the end, or a part of a head that never becomes a request."""


@st.composite
def scripts(draw: st.DrawFn, client: int) -> Script:
    script = Script()
    for number in range(draw(st.integers(1, 4))):
        method = draw(st.sampled_from([b"GET", b"GET", b"POST", b"PUT", b"HEAD"]))
        target = b"/c%dr%d/%b" % (client, number, draw(st.sampled_from(ANSWERS)))
        body = draw(st.sampled_from(BODIES)) if method in (b"POST", b"PUT") else b""
        lines = draw(st.sampled_from([CURL, CHROME, b"Host: x\r\n"]))
        if body and draw(st.booleans()):
            middle = draw(st.integers(1, len(body)))
            parts = [part for part in (body[:middle], body[middle:]) if part]
            framed = (
                b"".join(b"%x;e=1\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\nT: 1\r\n\r\n"
            )
            lines += b"Transfer-Encoding: chunked\r\n"
        else:
            framed = body
            lines += b"Content-Length: %d\r\n" % len(body) if body else b""
        script.requests.append(Expected(method, target, body))
        script.data += b"%b %b HTTP/1.1\r\n%b\r\n%b" % (method, target, lines, framed)
    match draw(st.sampled_from(["nothing", "half a head", "tunnel"])):
        case "half a head":
            script.after = HALF_HEAD
        case "tunnel":
            target = b"/c%dr9/upgrade" % client
            script.requests.append(Expected(b"GET", target, b""))
            script.data += (
                b"GET %b HTTP/1.1\r\nHost: x\r\nUpgrade: echo\r\nConnection: Upgrade\r\n\r\n" % target
            )
            script.after = TUNNELLED
    return script


def played(scripts: list[Script], seed: int) -> tuple[list[bytes], list[Seen]]:
    """Play the scripts at once: what each client got, and what the replicas saw."""
    chance = random.Random(seed)
    seen: list[Seen] = []
    replicas: list[Replica] = []

    def accept(wire: Wire) -> None:
        replicas.append(Replica(wire, seen))
        wire.on_write = replicas[-1].read

    async def main() -> list[bytes]:
        async with rig(replicas=2) as fast:
            fast.on_open = accept
            clients = [(fast.client(), [script.data + script.after]) for script in scripts]
            idle = 0
            while idle < 20:
                ways: list[tuple[Wire, list[bytes]]] = [way for way in clients if way[1][0]]
                outboxes = [replica for replica in replicas if replica.outbox]
                able = [way for way in ways if way[0].open]
                ready = [replica for replica in outboxes if replica.wire.open]
                if (not able and not ready) or chance.random() < 0.2:
                    await asyncio.sleep(0)
                    idle += not able and not ready
                    continue
                idle = 0
                pick = chance.randrange(len(able) + len(ready))
                if pick < len(able):
                    wire, left = able[pick]
                    size = chance.choice(PACKETS)
                    packet, left[0] = left[0][:size], left[0][size:]
                    wire.send(packet)
                else:
                    bring(ready[pick - len(able)], chance)
            got = [wire.written for wire, _ in clients]
            for wire, _ in clients:
                wire.lose()
            return got

    return asyncio.run(main()), seen


def bring(replica: Replica, chance: random.Random) -> None:
    """Bring the next packet of a replica: a part of a message, or some of them."""
    message = replica.outbox.popleft()
    if not message:
        replica.wire.lose()
        return
    size = chance.choice(PACKETS)
    if size < len(message):
        replica.outbox.appendleft(message[size:])
    replica.wire.send(message[:size])


@tried(150, suppress_health_check=list(HealthCheck))
@given(
    st.integers(1, 4).flatmap(lambda count: st.tuples(*map(scripts, range(count)))), st.integers(0, 1 << 30)
)
def test_each_client_gets_its_own_answers_and_replicas_see_what_was_sent(
    made: tuple[Script, ...], seed: int
) -> None:
    got, seen = played(list(made), seed)
    for script, data in zip(made, got, strict=True):
        for expected in script.requests:
            data = expected.take_answer(data)
        assert data == (script.after if script.after == TUNNELLED else b""), "nothing but its own answers"
    sent: Counter[Seen] = Counter()
    for script in made:
        for one in script.requests:
            body = b"" if one.target.endswith(b"/early") else one.body
            sent[one.method, one.target, body] += 1
    assert Counter(seen) == sent
