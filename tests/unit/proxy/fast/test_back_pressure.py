"""Nobody's bytes pile up here: each side is read only as fast as the other takes what it sends."""

from tests.unit.proxy.fast.rig import rig

GET = b"GET /x HTTP/1.1\r\nHost: x\r\n\r\n"
SHORT = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
LONG = b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n"
UPLOAD = b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n"
UPGRADE = b"GET /x HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n"
SWITCH = b"HTTP/1.1 101 Switching\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n"


async def test_a_client_that_pipelines_is_read_no_further_than_its_turn() -> None:
    async with rig() as fast:
        client = fast.client()
        client.send(GET + GET + GET[:9])
        await fast.settle()
        [behind] = fast.opened
        for _ in range(2):
            assert client.paused, "there is more than the present request"
            behind.send(SHORT)
            await fast.settle()
        assert not client.paused
        client.send(GET[9:])
        await fast.settle()
        behind.send(SHORT)
        assert client.written.count(b"\r\n\r\nok") == 3
        client.lose()


async def test_one_whose_usual_request_is_under_way_is_read_no_further_either() -> None:
    async with rig() as fast:
        behind, client = fast.warm(), fast.client()
        client.send(GET)
        assert not client.paused
        client.send(GET)
        assert client.paused
        behind.send(SHORT)
        assert not client.paused
        behind.send(SHORT)
        assert client.written.count(b"\r\n\r\nok") == 2
        client.lose()


async def test_a_body_waits_for_the_replica_to_take_it() -> None:
    async with rig() as fast:
        client = fast.client()
        client.send(UPLOAD)
        assert client.paused, "there is no connection yet"
        await fast.settle()
        [behind] = fast.opened
        assert not client.paused
        behind.protocol.pause_writing()
        assert client.paused
        behind.protocol.resume_writing()
        assert not client.paused
        client.lose()


async def test_an_answer_waits_for_the_client_to_take_it() -> None:
    async with rig() as fast:
        client = fast.client()
        client.send(GET)
        await fast.settle()
        [behind] = fast.opened
        behind.send(LONG + bytes(1000))
        client.protocol.pause_writing()
        assert behind.paused
        client.protocol.resume_writing()
        assert not behind.paused
        behind.send(bytes(99_000))
        assert len(client.written) > 100_000
        client.lose()


async def test_an_answer_waits_also_when_its_request_was_usual() -> None:
    async with rig() as fast:
        behind, client = fast.warm(), fast.client()
        client.send(GET)
        client.protocol.pause_writing()
        assert behind.paused
        client.protocol.resume_writing()
        behind.send(SHORT)
        assert client.written.endswith(b"\r\n\r\nok")
        client.lose()


async def test_a_kept_connection_is_read_again_after_an_answer_that_waited() -> None:
    async with rig() as fast:
        behind, client = fast.warm(), fast.client()
        client.send(GET)
        client.protocol.pause_writing()
        behind.protocol.data_received(SHORT)  # it was on its way
        client.lose()
        await fast.settle()
        another = fast.client()
        another.send(GET)
        await fast.settle()
        assert fast.opened[-1].open
        fast.opened[-1].send(SHORT)
        assert another.written.endswith(b"\r\n\r\nok")
        another.lose()


async def test_a_tunnel_holds_back_both_ways() -> None:
    async with rig() as fast:
        client = fast.client()
        client.send(UPGRADE)
        await fast.settle()
        [behind] = fast.opened
        behind.send(SWITCH)
        for here, there in ((client, behind), (behind, client)):
            here.protocol.pause_writing()
            assert there.paused
            here.protocol.resume_writing()
            assert not there.paused
        client.lose()
