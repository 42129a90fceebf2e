"""Workers outlive a control plane that is killed, and make way for its successor."""

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
