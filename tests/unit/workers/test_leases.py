"""The counts of the control plane agree with those of a worker, after any sequence of events."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from loadbalancer.routing.snapshot import snapshot_maker
from loadbalancer.routing.upstream import Upstream
from loadbalancer.settings import Settings
from loadbalancer.telemetry.metrics import Metrics
from loadbalancer.workers import messages
from loadbalancer.workers.follower import Follower
from loadbalancer.workers.leases import Leases
from tests.unit.fleet.fakes import pass_time, run


class Fleet:
    """Publishes snapshots."""

    expects_upstream = True

    def __init__(self) -> None:
        self.make = snapshot_maker("round-robin", "default", 0, random.Random(1))
        self.snapshot = self.make(())

    async def next_snapshot(self) -> None:
        raise AssertionError("no request waits in this test")


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["rotate", "begin", "end", "fail", "refuse", "report"]), st.integers(0, 1 << 16)
    ),
    max_size=60,
)


class Pair:
    """A worker's follower and the control plane's leases of this worker, connected without sockets."""

    def __init__(self) -> None:
        self.fleet, self.total = Fleet(), Metrics()
        options = Settings.model_validate({"policy": "round-robin", "workers": 2})
        self.leases = Leases(self.fleet, self.total)
        self.counted = Metrics()
        self.follower = Follower(options, self.counted, self.receive)
        self.known: list[Upstream] = []
        self.refused: list[str] = []
        self.failed: list[tuple[str, int]] = []

    def receive(self, message: messages.Message) -> None:
        """Pass a notice of the worker to the control plane."""
        notice = messages.notices.validate_json(messages.line(message))
        if isinstance(notice, messages.Report):
            self.leases.take(notice)
        elif isinstance(notice, messages.LeaseEnded):
            self.leases.end_one(notice.id)

    def send_rotation(self) -> None:
        """Pass the rotation to the worker if it has changed."""
        if (rotation := self.leases.rotation()) is not None:
            command = messages.commands.validate_json(messages.line(rotation))
            assert isinstance(command, messages.Rotation)
            self.follower.follow(command)

    def rotate(self, choice: int) -> None:
        """Put some of the known replicas in rotation, and perhaps a new one, up to six in all."""
        rng = random.Random(choice)
        members = [upstream for upstream in self.known if rng.random() < 0.6]
        if rng.random() < 0.5 and len(self.known) < 6:
            upstream = Upstream(f"r{len(self.known)}", len(self.known) + 1, "127.0.0.1", 1)
            upstream.on_refusal = lambda: self.refused.append(upstream.hostname)
            upstream.on_failure = lambda row: self.failed.append((upstream.hostname, row))
            self.known.append(upstream)
            members.append(upstream)
        self.fleet.snapshot = self.fleet.make(members)
        self.send_rotation()


class Requests:
    """The requests in flight in the worker of a pair, and the number of results."""

    def __init__(self, pair: Pair) -> None:
        self._pair = pair
        self.in_flight: list[Upstream] = []
        self.successes = self.failures = self.refusals = 0

    def begin(self) -> None:
        upstream = self._pair.follower.publication.snapshot.pick("key")
        if upstream is not None:
            upstream.acquire()
            self._pair.counted.in_flight += 1
            self.in_flight.append(upstream)

    def end(self, choice: int, status: int) -> None:
        upstream = self.in_flight.pop(choice % len(self.in_flight))
        upstream.record_answer(status)
        upstream.release()
        self._pair.counted.in_flight -= 1
        self._pair.counted.count(upstream.hostname, status, 0.01)
        self.successes += status < 500
        self.failures += status >= 500

    def refuse(self, choice: int) -> None:
        self.in_flight[choice % len(self.in_flight)].record_refusal()
        self.refusals += 1

    def step(self, step: str, choice: int) -> None:
        if step == "rotate":
            self._pair.rotate(choice)
        elif step == "begin":
            self.begin()
        elif step == "report":
            self._pair.follower.report(0)
        elif self.in_flight and step == "refuse":
            self.refuse(choice)
        elif self.in_flight:
            self.end(choice, 200 if step == "end" else 500)


@settings(max_examples=150, deadline=None)
@given(STEPS)
def test_the_counts_agree_after_any_sequence_of_events(steps: list[tuple[str, int]]) -> None:
    async def main() -> None:
        pair = Pair()
        requests = Requests(pair)
        for step, choice in steps:
            requests.step(step, choice)
            await pass_time(0)
        pair.follower.report(0)
        await pass_time(0)
        assert pair.total.in_flight == len(requests.in_flight)
        assert sum(upstream.in_flight for upstream in pair.known) == len(requests.in_flight)
        assert sum(upstream.successes for upstream in pair.known) == requests.successes
        assert len(pair.refused) == requests.refusals
        assert len(pair.failed) <= requests.failures, "a success in the same report hides failures before it"
        present = set(pair.fleet.snapshot.upstreams)
        busy = {upstream.hostname for upstream in requests.in_flight}
        for upstream in pair.known:
            leased = upstream in present or upstream.hostname in busy
            assert upstream.busy == leased, "the worker has a lease while it may use the upstream"

        while requests.in_flight:
            requests.end(0, 200)
        pair.fleet.snapshot = pair.fleet.make(())
        pair.send_rotation()
        await pass_time(0)
        assert not any(upstream.busy for upstream in pair.known)
        assert pair.total.in_flight == 0
        total = sum(count for _, _, count in pair.total.take().requests)
        assert total == requests.successes + requests.failures

    run(main())


def test_failures_are_reported_at_once_and_a_success_resets_their_number() -> None:
    async def main() -> None:
        pair = Pair()
        pair.rotate(1)
        while not pair.known or not pair.fleet.snapshot.upstreams:
            pair.rotate(random.randrange(1 << 16))
        upstream = pair.follower.publication.snapshot.upstreams[0]
        for _ in range(3):
            upstream.record_failure()
        await pass_time(0)
        assert [row for _, row in pair.failed] == [1, 2, 3]
        upstream.record_answer(200)
        upstream.record_failure()
        await pass_time(0)
        assert pair.failed[-1][1] == 1

    run(main())


def test_the_end_of_a_worker_ends_its_leases_and_requests() -> None:
    async def main() -> None:
        pair = Pair()
        while not pair.fleet.snapshot.upstreams:
            pair.rotate(random.randrange(1 << 16))
        upstream = pair.follower.publication.snapshot.upstreams[0]
        upstream.acquire()
        pair.counted.in_flight += 1
        pair.follower.report(0)
        assert pair.total.in_flight == 1
        pair.leases.end_all()
        assert not any(known.busy for known in pair.known)
        assert pair.total.in_flight == 0

    run(main())
