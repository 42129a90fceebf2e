"""Runs every experiment with few requests on the real system, and checks its figures and files."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from analysis import report
from analysis.bench import comparison, kills
from loadbalancer.cli.distribution import draw
from tests.harness import LoadBalancer, free_port, replica

REQUESTS = 300


def analysis(folder: Path, *argv: str) -> dict[str, Any]:
    """Run a subcommand with `--json`, check its files, and return the result that it prints."""
    options = ["--requests", str(REQUESTS), "--quick", "--json", "--out", str(folder)]
    done = subprocess.run(
        [sys.executable, "-m", "analysis", *argv, *options], capture_output=True, text=True, timeout=110
    )
    assert done.returncode == 0, done.stderr
    saved: dict[str, Any] = json.loads(done.stdout)
    name = saved["experiment"]
    assert json.loads((folder / f"{name}.json").read_text()) == saved
    assert saved["machine"]["versions"]["loadbalancer"]
    assert saved["seed"] == 1
    assert "python -m analysis" in saved["command"]
    for picture in report.EXPERIMENTS[name].draw(saved["result"]):
        assert (folder / f"{picture}.svg").read_text().rstrip().endswith("</svg>")
        assert (folder / f"{picture}.png").read_bytes().startswith(b"\x89PNG")
    result: dict[str, Any] = saved["result"]
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


def test_load_in_an_open_loop_counts_the_wait_of_delayed_requests(tmp_path: Path) -> None:
    with LoadBalancer("--command", replica("odd"), "--load-factor", "0", replicas=1) as lb:
        url = f"http://127.0.0.1:{lb.port}/slow?seconds=0.02"
        (run,) = analysis(tmp_path, "load", url, "--rate", "100", "--concurrency", "1")["runs"]
        # One connection answers at most 50 requests a second. Of the requests of 3 s, half wait for over 1 s.
        assert (run["requests"], run["failed"]) == (REQUESTS, 0)
        assert run["percentiles"]["50"] > 1.0


def test_load_counts_failures_by_kind(tmp_path: Path) -> None:
    (run,) = analysis(tmp_path, "load", f"http://127.0.0.1:{free_port()}/")["runs"]
    assert run["errors"] == {"refused": REQUESTS}
    with LoadBalancer("--command", replica("odd"), "--eject-after", "0", replicas=1) as lb:
        (run,) = analysis(tmp_path, "load", f"http://127.0.0.1:{lb.port}/teapot")["runs"]
        assert run["errors"] == {"status 418": REQUESTS}


def test_load_over_https(tmp_path: Path) -> None:
    from tests.integration.test_tls import Issued

    issued = Issued(tmp_path)
    with LoadBalancer(*issued.options, replicas=0) as lb:
        (run,) = analysis(tmp_path, "load", f"https://127.0.0.1:{lb.port}/lb/health")["runs"]
        assert run["statuses"] == {"503": REQUESTS}


def test_a1_counts_equal_the_ring(tmp_path: Path) -> None:
    cases = {case["label"]: case for case in analysis(tmp_path, "A-1")["cases"]}
    assert len(cases) == 7
    for name in ("classic", "classic-modified", "classic-sha256", "default"):
        expected = list(draw(name, 3, REQUESTS, seed=1).counts.values())
        assert cases[f"ring {name}"]["counts"] == expected, (
            "each request goes to the replica that the ring gives"
        )
    assert all(sum(case["counts"]) == REQUESTS for case in cases.values())
    assert cases["round-robin"]["counts"] == [REQUESTS // 3] * 3
    assert cases["weighted 2:1:1"]["counts"] == [REQUESTS // 2, REQUESTS // 4, REQUESTS // 4]


def test_a2_counts_equal_the_ring(tmp_path: Path) -> None:
    for case in analysis(tmp_path, "a2")["hashed"]:
        assert case["counts"] == list(draw("default", case["replicas"], REQUESTS, seed=1).counts.values())
        assert case["mean"] == REQUESTS / case["replicas"]


def test_a3_measures_the_kill_and_the_recovery(tmp_path: Path) -> None:
    result = analysis(tmp_path, "a3")
    assert result["summary"]["failed"] == 0
    moments = result["moments"]
    assert 0 < moments["down"] <= moments["starting"] < moments["up"] < 20
    calls = {(call["call"], call["status"]) for call in result["calls"]}
    assert {("GET /home", 200), ("GET /other", 400), ("POST /add", 200), ("POST /add", 400)} <= calls
    answered = sum(bucket["answered"] for bucket in result["timeline"])
    assert answered == pytest.approx(600, rel=0.1), "200 a second for three seconds, without the last step"


def test_a4_agrees_with_the_published_and_the_computed_counts(tmp_path: Path) -> None:
    cases = analysis(tmp_path, "a4")["cases"]
    assert {case["ring"] for case in cases} == {"classic", "classic-modified", "classic-sha256"}
    for case in cases:
        assert case["noise"] <= 4
        assert case["published_noise"] <= 4
        assert sum(case["id_share"]) == pytest.approx(1)
        assert sum(case["slot_share"]) == pytest.approx(1)


def test_disruption_covers_every_ring_and_modulo_n(tmp_path: Path) -> None:
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
    assert cases[0]["away"] == 0, "without a bound, the owner of a key gets all its requests"
    assert cases[-1]["away"] > 0
    for case in cases:
        assert case["failed"] == 0
        assert case["bound"] is None or 0 < case["peak_in_flight"] <= case["bound"]


def test_policies_that_count_requests_in_flight_send_fewer_to_a_slow_replica(tmp_path: Path) -> None:
    cases = {case["policy"]: case for case in analysis(tmp_path, "policies")["cases"]}
    assert cases["round-robin"]["slow_share"] == pytest.approx(0.25, abs=0.02)
    for policy in ("least-connections", "power-of-two", "hash, bounded"):
        assert cases[policy]["slow_share"] < 0.2
        assert cases[policy]["failed"] == 0


def test_scale_times_changes_and_picks(tmp_path: Path) -> None:
    result = analysis(tmp_path, "scale")
    assert [row["n"] for row in result["changes"] if row["backend"] == "process"] == [1, 2]
    assert all(0 < row["add"] < 60 and 0 < row["rm"] < 60 for row in result["changes"])
    assert all(0 < row["pick"] < 0.01 for row in result["picks"])


def test_peers_compares_both_lanes_with_nginx(tmp_path: Path) -> None:
    result = analysis(tmp_path, "peers")
    if result["missing"]:
        pytest.skip(result["missing"])
    rows = {(row["name"], row["connections"]): row for row in result["rows"]}
    assert rows["nginx", 64]["ratio"] == 1
    assert rows["this, fast lane", 64]["rate"] > rows["this, asgi lane", 64]["rate"]
    assert rows["this, fast lane", 64]["failures"] == 0


def bench(*options: str) -> "subprocess.CompletedProcess[str]":
    """Run the shortest benchmark; skip the test where a program that it needs is not installed."""
    try:
        comparison.check()
    except comparison.ComparisonError as error:
        pytest.skip(str(error))
    quick = ["--runs", "1", "--seconds", "1", "--connections", "8", "--many", "100", "--clients", "20"]
    return subprocess.run(
        [sys.executable, "-m", "analysis.bench", *quick, "--kills", "1", *options],
        capture_output=True,
        text=True,
        timeout=110,
    )


def ours(text: str) -> list[list[str]]:
    """The cells of the fast lane's row in each table."""
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


def test_the_bench_measures_crowds_short_connections_and_kills() -> None:
    done = bench("--only", "crowd,short,kills")
    assert done.returncode == 0, done.stderr
    one_request, many_requests, short = ours(done.stdout)
    assert 0 < float(one_request[2]) <= float(one_request[3]) < 10
    assert 0 < float(many_requests[2]) < 10
    assert int(short[1].replace(",", "")) > 100
    assert short[7] == "0"
    row = r"^\| (?:the sample replica|a minimal replica) \| 1 \| [0-9,]+ \| [0-9,]+ \| (\d+)"
    failed = re.findall(row, done.stdout, re.MULTILINE)
    assert len(failed) == 2
    assert all(int(count) < kills.CLIENTS for count in failed), (
        "at most the requests in flight to the killed replica fail"
    )


def test_the_bench_measures_every_feature_at_once_and_tls() -> None:
    done = bench("--only", "laden,tls")
    assert done.returncode == 0, done.stderr
    speeds = ours(done.stdout)
    assert len(speeds) == (2 if shutil.which("h2load") else 1)
    for speed in speeds:
        assert int(speed[1].replace(",", "")) > 100
        assert speed[7] == "0"


def test_an_unknown_row_of_the_bench_is_refused_in_one_sentence() -> None:
    done = bench("--only", "varied,speed")
    assert done.returncode == 2
    assert "there is no row 'speed': varied, identical," in done.stderr


def test_a_missing_backend_is_reported_in_one_sentence(tmp_path: Path) -> None:
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


def test_the_page_of_the_report_equals_the_stored_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page in the repository says the same as the stored results."""
    root = Path(__file__).parent.parent.parent
    stored = root / "analysis" / "results" / "report"
    saved = [json.loads((stored / f"{name}.json").read_text()) for name in report.EXPERIMENTS]
    page = (root / "docs" / "analysis.md").read_text()
    minutes = re.findall(r"one run of (\d+) minutes", page)[0]
    (tmp_path / "docs").mkdir()
    monkeypatch.chdir(tmp_path)
    report.write(Path("docs/analysis.md"), Path("analysis/results/report"), saved, float(minutes))
    assert Path("docs/analysis.md").read_text() == page
    for name in re.findall(r"\(\.\./analysis/results/report/(\S+\.svg)\)", page):
        assert (stored / name).exists()
