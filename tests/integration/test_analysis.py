"""Every experiment, small, on the real system: its figures are looked at, not only its files."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from analysis import report
from analysis.bench import contest, kills
from loadbalancer.distribution import draw
from tests.harness import LoadBalancer, free_port, replica

REQUESTS = 300


def analysis(folder: Path, *argv: str) -> dict[str, Any]:
    """Run a subcommand; what it prints with `--json`."""
    options = ["--requests", str(REQUESTS), "--quick", "--json", "--out", str(folder)]
    done = subprocess.run(
        [sys.executable, "-m", "analysis", *argv, *options], capture_output=True, text=True, timeout=110
    )
    assert done.returncode == 0, done.stderr
    whole: dict[str, Any] = json.loads(done.stdout)
    name = whole["experiment"]
    assert json.loads((folder / f"{name}.json").read_text()) == whole
    assert whole["machine"]["versions"]["loadbalancer"]
    assert whole["seed"] == 1
    assert "python -m analysis" in whole["command"]
    for picture in report.EXPERIMENTS[name].draw(whole["result"]):
        assert (folder / f"{picture}.svg").read_text().rstrip().endswith("</svg>")
        assert (folder / f"{picture}.png").read_bytes().startswith(b"\x89PNG")
    result: dict[str, Any] = whole["result"]
    return result


def test_load_in_a_closed_loop(tmp_path: Path) -> None:
    with LoadBalancer(replicas=2) as lb:
        (run,) = analysis(tmp_path, "load", f"http://127.0.0.1:{lb.port}/home", "--concurrency", "20")["runs"]
        assert (run["requests"], run["failed"], run["statuses"]) == (REQUESTS, 0, {"200": REQUESTS})
        assert sum(run["replicas"].values()) == REQUESTS
        assert set(run["replicas"]) == {"Server-1", "Server-2"}
        assert 0 < run["percentiles"]["50"] <= run["percentiles"]["99.9"] <= run["max"]
        metrics = lb.call("GET", "/lb/metrics").body.decode()
        counted = re.findall(r'^lb_requests_total\{.*status="200"\} (\S+)$', metrics, re.MULTILINE)
        assert sum(map(float, counted)) == REQUESTS


def test_load_in_an_open_loop_shows_a_stall_in_every_request_that_it_held_up(tmp_path: Path) -> None:
    with LoadBalancer("--command", replica("odd"), "--load-factor", "0", replicas=1) as lb:
        url = f"http://127.0.0.1:{lb.port}/slow?seconds=0.02"
        (run,) = analysis(tmp_path, "load", url, "--rate", "100", "--concurrency", "1")["runs"]
        # One connection answers fifty a second at most: of those that come in 3 s half wait for over 1 s.
        assert (run["requests"], run["failed"]) == (REQUESTS, 0)
        assert run["percentiles"]["50"] > 1.0


def test_load_counts_what_fails_by_kind(tmp_path: Path) -> None:
    (run,) = analysis(tmp_path, "load", f"http://127.0.0.1:{free_port()}/")["runs"]
    assert run["errors"] == {"refused": REQUESTS}
    with LoadBalancer("--command", replica("odd"), "--eject-after", "0", replicas=1) as lb:
        (run,) = analysis(tmp_path, "load", f"http://127.0.0.1:{lb.port}/teapot")["runs"]
        assert run["errors"] == {"status 418": REQUESTS}


def test_load_by_https(tmp_path: Path) -> None:
    from tests.integration.test_tls import Issued

    issued = Issued(tmp_path)
    with LoadBalancer(*issued.options, replicas=0) as lb:
        (run,) = analysis(tmp_path, "load", f"https://127.0.0.1:{lb.port}/lb/health")["runs"]
        assert run["statuses"] == {"503": REQUESTS}


def test_a1_counts_what_the_ring_says(tmp_path: Path) -> None:
    cases = {case["label"]: case for case in analysis(tmp_path, "A-1")["cases"]}
    assert len(cases) == 7
    for name in ("classic", "classic-modified", "classic-sha256", "default"):
        expected = list(draw(name, 3, REQUESTS, seed=1).counts.values())
        assert cases[f"ring {name}"]["counts"] == expected, "request by request"
    assert all(sum(case["counts"]) == REQUESTS for case in cases.values())
    assert cases["round-robin"]["counts"] == [REQUESTS // 3] * 3
    assert cases["weighted 2:1:1"]["counts"] == [REQUESTS // 2, REQUESTS // 4, REQUESTS // 4]


def test_a2_counts_what_the_ring_says(tmp_path: Path) -> None:
    for case in analysis(tmp_path, "a2")["hashed"]:
        assert case["counts"] == list(draw("default", case["replicas"], REQUESTS, seed=1).counts.values())
        assert case["mean"] == REQUESTS / case["replicas"]


def test_a3_sees_the_kill_and_the_recovery(tmp_path: Path) -> None:
    result = analysis(tmp_path, "a3")
    assert result["summary"]["failed"] == 0
    moments = result["moments"]
    assert 0 < moments["down"] <= moments["starting"] < moments["up"] < 20
    calls = {(call["call"], call["status"]) for call in result["calls"]}
    assert {("GET /home", 200), ("GET /other", 400), ("POST /add", 200), ("POST /add", 400)} <= calls
    answered = sum(bucket["answered"] for bucket in result["timeline"])
    assert answered == pytest.approx(600, rel=0.1), "200 a second for three seconds, but for the last step"


def test_a4_agrees_with_what_was_published_and_computed(tmp_path: Path) -> None:
    cases = analysis(tmp_path, "a4")["cases"]
    assert {case["ring"] for case in cases} == {"classic", "classic-modified", "classic-sha256"}
    for case in cases:
        assert case["noise"] <= 4
        assert case["published_noise"] <= 4
        assert sum(case["id_share"]) == pytest.approx(1)
        assert sum(case["slot_share"]) == pytest.approx(1)


def test_disruption(tmp_path: Path) -> None:
    rows = analysis(tmp_path, "disruption")["rows"]
    assert {row["hash"] for row in rows} == {
        "classic",
        "classic-modified",
        "classic-sha256",
        "default",
        "modulo N",
    }


def test_bounded_loads_bound_the_load(tmp_path: Path) -> None:
    cases = analysis(tmp_path, "bounded")["cases"]
    assert [case["factor"] for case in cases] == [0, 1.5, 1.1]
    assert cases[0]["away"] == 0, "without a bound every key stays at home"
    assert cases[-1]["away"] > 0
    for case in cases:
        assert case["failed"] == 0
        assert case["bound"] is None or 0 < case["peak_in_flight"] <= case["bound"]


def test_policies_that_look_at_the_load_spare_the_slow_one(tmp_path: Path) -> None:
    cases = {case["policy"]: case for case in analysis(tmp_path, "policies")["cases"]}
    assert cases["round-robin"]["slow_share"] == pytest.approx(0.25, abs=0.02)
    for policy in ("least-connections", "power-of-two", "hash, bounded"):
        assert cases[policy]["slow_share"] < 0.2
        assert cases[policy]["failed"] == 0


def test_scale(tmp_path: Path) -> None:
    result = analysis(tmp_path, "scale")
    assert [row["n"] for row in result["changes"] if row["backend"] == "process"] == [1, 2]
    assert all(0 < row["add"] < 60 and 0 < row["rm"] < 60 for row in result["changes"])
    assert all(0 < row["pick"] < 0.01 for row in result["choices"])


def test_peers(tmp_path: Path) -> None:
    result = analysis(tmp_path, "peers")
    if result["missing"]:
        pytest.skip(result["missing"])
    rows = {(row["name"], row["connections"]): row for row in result["rows"]}
    assert rows["nginx", 64]["ratio"] == 1
    assert rows["this, fast lane", 64]["rate"] > rows["this, asgi lane", 64]["rate"]
    assert rows["this, fast lane", 64]["failures"] == 0


def bench(*options: str) -> "subprocess.CompletedProcess[str]":
    """The benchmark, as short as it gets; the test is skipped where its programs are not installed."""
    try:
        contest.check()
    except contest.ContestError as error:
        pytest.skip(str(error))
    quick = ["--runs", "1", "--seconds", "1", "--connections", "8", "--many", "100", "--clients", "20"]
    return subprocess.run(
        [sys.executable, "-m", "analysis.bench", *quick, "--kills", "1", *options],
        capture_output=True,
        text=True,
        timeout=110,
    )


def ours(text: str) -> list[list[str]]:
    """The rows of the fast lane in all tables, cell by cell."""
    return [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in text.splitlines()
        if line.startswith("| this, fast lane")
    ]


def test_the_bench_writes_its_tables_into_a_page(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- bench -->\nold\n<!-- /bench -->\nafter\n")
    done = bench("--only", "varied,tail,memory,bodies", "--report", str(page))
    assert done.returncode == 0, done.stderr
    text = page.read_text()
    assert text.startswith("before\n<!-- bench -->\n")
    assert text.endswith("<!-- /bench -->\nafter\n")
    assert "old" not in text
    varied, tail, memory, bodies = ours(text)
    assert int(varied[1].replace(",", "")) > 1_000
    assert float(varied[4]) > 0
    assert varied[7] == "0"
    assert 0 < float(tail[4]) < 1_000
    assert memory[1] == "0"
    assert float(bodies[2]) > 0
    assert float(bodies[4]) > 0


def test_the_bench_asks_in_every_other_way_too() -> None:
    done = bench("--only", "crowd,short,kills")
    assert done.returncode == 0, done.stderr
    asked_once, asked_on, short = ours(done.stdout)
    assert 0 < float(asked_once[2]) <= float(asked_once[3]) < 10
    assert 0 < float(asked_on[2]) < 10
    assert int(short[1].replace(",", "")) > 100
    assert short[7] == "0"
    row = r"^\| (?:the sample replica|a fast one) \| 1 \| [0-9,]+ \| [0-9,]+ \| (\d+)"
    failed = re.findall(row, done.stdout, re.MULTILINE)
    assert len(failed) == 2
    assert all(int(count) < kills.CLIENTS for count in failed), "some of those in flight to it, at worst"


def test_the_bench_burdens_all_alike() -> None:
    done = bench("--only", "laden,tls")
    assert done.returncode == 0, done.stderr
    speeds = ours(done.stdout)
    assert len(speeds) == (2 if shutil.which("h2load") else 1)
    for speed in speeds:
        assert int(speed[1].replace(",", "")) > 100
        assert speed[7] == "0"


def test_a_row_that_the_bench_does_not_have_is_one_sentence() -> None:
    done = bench("--only", "varied,speed")
    assert done.returncode == 2
    assert "there is no row 'speed': varied, identical," in done.stderr


def test_a_backend_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "analysis", "a3", "--quick", "--backend", "docker", "--out", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=110,
        env={"PATH": "/nowhere", "DOCKER_HOST": "unix:///nowhere.sock"},
    )
    assert done.returncode == 1
    assert done.stderr.startswith("the load balancer did not start:")
    assert done.stderr.count("\n") == 1


def test_the_report_is_made_of_results_alone() -> None:
    """The page in the repository is what its results say."""
    root = Path(__file__).parent.parent.parent
    folder = root / "analysis" / "results" / "report"
    wholes = [json.loads((folder / f"{name}.json").read_text()) for name in report.EXPERIMENTS]
    page = (root / "docs" / "analysis.md").read_text()
    for whole in wholes:
        module = report.EXPERIMENTS[whole["experiment"]]
        assert module.tell(whole["result"]) in page
        for picture in module.draw(whole["result"]):
            assert f"../analysis/results/report/{picture}.svg" in page
            assert (folder / f"{picture}.svg").exists()
