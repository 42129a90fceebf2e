"""Workers outlive a control plane that is killed, and make way for its successor."""

import os
import signal
from pathlib import Path

import pytest

from tests.harness import LoadBalancer, eventually, request
from tests.integration.test_workers import loading, workers

pytestmark = pytest.mark.usefixtures("images")


def test_the_control_plane_is_killed_and_started_again_without_a_lost_request(fleet: str) -> None:
    with LoadBalancer("--backend", "docker", "--fleet", fleet, "--workers", "2", replicas=2) as lb:
        lb.wait_for("workers ready")
        before = {name: state["id"] for name, state in lb.state().items()}
        orphans = workers(lb)
        with loading(lambda: request(lb.port, "GET", "/home").status) as statuses:
            lb.process.kill()
            lb.process.wait()
            enough = len(statuses) + 50
            eventually(lambda: len(statuses) >= enough, "requests are answered while nobody is in control")
            mark = lb.mark()
            lb.start()
            lb.wait_for("workers ready", after=mark)
            eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in orphans), "they have gone")
            enough = len(statuses) + 50
            eventually(lambda: len(statuses) >= enough, "the successor's workers answer")
        assert set(statuses) == {200}
        assert {name: state["id"] for name, state in lb.state().items()} == before


def test_the_port_has_no_dead_part_after_a_worker_dies_without_a_control_plane(fleet: str) -> None:
    with LoadBalancer("--backend", "docker", "--fleet", fleet, "--workers", "2", replicas=2) as lb:
        lb.wait_for("workers ready")
        orphans = workers(lb)
        lb.process.kill()
        lb.process.wait()
        lb.wait_for("the control plane has ended: this worker serves until a successor takes over", 2)
        os.kill(orphans[0], signal.SIGKILL)
        eventually(lambda: not Path(f"/proc/{orphans[0]}").exists(), "it has ended")
        for _ in range(40):
            assert request(lb.port, "GET", "/home", timeout=5).status == 200
        lb.start()


@pytest.mark.parametrize("after", ["replica starting", "serving"])
def test_sigterm_while_containers_start_leaves_none(fleet: str, after: str) -> None:
    """The fixture of the fleet looks for what is left."""
    lb = LoadBalancer("--backend", "docker", "--fleet", fleet, "--workers", "2", replicas=0)
    lb._argv[lb._argv.index("--replicas") + 1] = "3"  # do not wait until they are up
    with lb:
        lb.wait_for(after)
        assert lb.stop() == 0
