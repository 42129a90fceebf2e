"""The process backend with real processes."""

import asyncio
import contextlib
import json
import os
import signal
import sys
import textwrap
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from loadbalancer.errors import BackendError
from loadbalancer.fleet.backends.base import Instance, ReplicaSpec
from loadbalancer.fleet.backends.process import PORTS, ProcessBackend

SPEC = ReplicaSpec("Server-1", 1)

REPLICA = """
    import json, os, signal, socket, subprocess, sys

    if "unmoved" in sys.argv:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    listener = socket.create_server(("127.0.0.1", int(os.environ["PORT"])))
    print("listening", flush=True)
    while True:
        connection, _ = listener.accept()
        facts = {name: os.environ[name] for name in ("PORT", "HOSTNAME", "SERVER_ID")}
        connection.sendall(json.dumps(facts | {"pid": os.getpid()}).encode() + b"\\n")
        if "child" in sys.argv:  # it holds the connection open for as long as it lives
            subprocess.Popen(["sleep", "600"], pass_fds=[connection.fileno()])
        connection.recv(1)
"""


@pytest.fixture
def replica(tmp_path: Path) -> str:
    script = tmp_path / "replica.py"
    script.write_text(textwrap.dedent(REPLICA))
    return f"python {script}"


@pytest.fixture
async def backends() -> AsyncIterator[list[ProcessBackend]]:
    made: list[ProcessBackend] = []
    yield made
    for backend in made:
        await backend.close()


async def opened(backends: list[ProcessBackend], command: str) -> ProcessBackend:
    backend = ProcessBackend(command)
    backends.append(backend)
    await backend.open()
    return backend


async def connect(instance: Instance) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    async with asyncio.timeout(10):
        while True:
            try:
                return await asyncio.open_connection(instance.host, instance.port)
            except OSError:
                await asyncio.sleep(0.02)


async def ask(instance: Instance) -> dict[str, object]:
    reader, writer = await connect(instance)
    facts: dict[str, object] = json.loads(await reader.readline())
    writer.close()
    return facts


async def test_a_replica_gets_its_port_hostname_and_id(backends: list[ProcessBackend], replica: str) -> None:
    backend = await opened(backends, replica)
    instance = await backend.start(SPEC)
    facts = await ask(instance)
    assert facts["PORT"] == str(instance.port)
    assert (facts["HOSTNAME"], facts["SERVER_ID"]) == ("Server-1", "Server-1")
    assert (instance.id, instance.host) == (str(facts["pid"]), "127.0.0.1")
    assert instance.port in PORTS
    await backend.stop(instance, 5)


async def test_replicas_that_start_at_the_same_time_get_different_ports(
    backends: list[ProcessBackend], replica: str
) -> None:
    backend = await opened(backends, replica)
    instances = await asyncio.gather(*(backend.start(ReplicaSpec(f"S{i}", i)) for i in range(1, 9)))
    assert len({instance.port for instance in instances}) == 8
    hostnames = [(await ask(instance))["HOSTNAME"] for instance in instances]
    assert hostnames == [f"S{i}" for i in range(1, 9)]
    await asyncio.gather(*(backend.stop(instance, 0) for instance in instances))


async def test_the_end_of_a_process_is_reported_with_code_and_last_output(
    backends: list[ProcessBackend],
) -> None:
    backend = await opened(backends, "sh -c 'echo one; echo out of luck >&2; exit 3'")
    instance = await backend.start(SPEC)
    async with asyncio.timeout(10):
        reason = await instance.why_lost(10)
    assert reason == "exited with code 3; last output: one | out of luck"


async def test_the_end_of_a_killed_process_names_the_signal(backends: list[ProcessBackend]) -> None:
    backend = await opened(backends, "sleep 600")
    instance = await backend.start(SPEC)
    os.kill(int(instance.id), signal.SIGKILL)
    async with asyncio.timeout(10):
        assert await instance.lost == "killed by SIGKILL"


async def test_stop_sends_sigterm_first(backends: list[ProcessBackend], replica: str) -> None:
    backend = await opened(backends, replica)
    instance = await backend.start(SPEC)
    await ask(instance)
    await backend.stop(instance, 30)
    assert instance.lost.result().startswith("killed by SIGTERM")
    await backend.stop(instance, 30)  # once more does no harm


async def test_a_replica_that_ignores_sigterm_is_killed_after_the_grace(
    backends: list[ProcessBackend], replica: str
) -> None:
    backend = await opened(backends, f"{replica} unmoved")
    instance = await backend.start(SPEC)
    await ask(instance)
    begun = asyncio.get_running_loop().time()
    await backend.stop(instance, 0.3)
    assert asyncio.get_running_loop().time() - begun >= 0.3
    assert instance.lost.result().startswith("killed by SIGKILL")


async def test_a_second_stop_shortens_the_first(backends: list[ProcessBackend], replica: str) -> None:
    backend = await opened(backends, f"{replica} unmoved")
    instance = await backend.start(SPEC)
    await ask(instance)
    patient = asyncio.create_task(backend.stop(instance, 600))
    await asyncio.sleep(0)
    async with asyncio.timeout(10):
        await backend.stop(instance, 0)
        await patient


async def test_the_children_of_a_replica_end_with_it(backends: list[ProcessBackend], replica: str) -> None:
    backend = await opened(backends, f"{replica} child")
    instance = await backend.start(SPEC)
    reader, writer = await connect(instance)
    await reader.readline()
    os.kill(int(instance.id), signal.SIGKILL)
    async with asyncio.timeout(10):
        assert await reader.read() == b"", "the child has closed its end"
        await instance.lost
    writer.close()


async def test_a_suspended_replica_is_killed_when_it_is_discarded(
    backends: list[ProcessBackend], replica: str
) -> None:
    backend = await opened(backends, replica)
    instance = await backend.start(SPEC)
    await ask(instance)
    os.kill(int(instance.id), signal.SIGSTOP)
    await backend.discard(instance)
    replacement = await backend.start(SPEC)
    assert (await ask(replacement))["HOSTNAME"] == "Server-1"
    async with asyncio.timeout(10):
        await instance.lost
    await backend.stop(replacement, 0)


async def test_a_missing_command_is_named(backends: list[ProcessBackend]) -> None:
    with pytest.raises(BackendError, match="there is no program 'no-such-program'"):
        await opened(backends, "no-such-program --serve")


async def test_a_command_that_cannot_run_is_named(backends: list[ProcessBackend], tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_text("#!/no/such/interpreter\n")
    program.chmod(0o755)
    backend = await opened(backends, str(program))
    with pytest.raises(BackendError, match="cannot run"):
        await backend.start(SPEC)


async def test_very_long_lines_of_output_do_not_end_the_log(backends: list[ProcessBackend]) -> None:
    backend = await opened(
        backends, "sh -c 'head -c 300000 /dev/zero | tr \"\\0\" x; echo; echo end; exit 1'"
    )
    instance = await backend.start(SPEC)
    async with asyncio.timeout(10):
        assert (await instance.why_lost(10)).endswith("end")


@pytest.mark.parametrize("fate", ["", "backend._guard.kill(), backend._guard.wait()"])
async def test_replicas_end_when_the_load_balancer_is_killed(replica: str, fate: str) -> None:
    """The connection to a replica breaks when the replica dies: no need to poll for it."""
    program = f"""
        import asyncio
        from loadbalancer.fleet.backends.base import ReplicaSpec
        from loadbalancer.fleet.backends.process import ProcessBackend

        async def main():
            backend = ProcessBackend({replica + " unmoved"!r})
            await backend.open()
            for number in (1, 2):
                print((await backend.start(ReplicaSpec(f"S{{number}}", number))).port, flush=True)
                if number == 1:
                    {fate or None}  # of the guard process: another one has to know both replicas
            await asyncio.sleep(600)

        asyncio.run(main())
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", textwrap.dedent(program), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    lines = [await process.stdout.readline() for _ in range(3 if fate else 2)]
    assert any(b"guard process failed, starting another" in line for line in lines) == bool(fate)
    ports = [int(line) for line in lines if line.strip().isdigit()]
    connections = [await connect(Instance("", "127.0.0.1", port)) for port in ports]
    for reader, _ in connections:
        await reader.readline()
    process.kill()
    await process.wait()
    async with asyncio.timeout(10):
        for reader, writer in connections:
            with contextlib.suppress(ConnectionResetError):
                assert await reader.read() == b""
            writer.close()
