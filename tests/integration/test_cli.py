"""The commands, run as a user runs them."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.harness import LoadBalancer, free_port


@pytest.fixture(scope="module")
def lb() -> Iterator[LoadBalancer]:
    with LoadBalancer(env={"LB_ADMIN_TOKEN": "sesame"}) as running:
        yield running


def loadbalancer(*args: str, env: Mapping[str, str] | None = None) -> "subprocess.CompletedProcess[str]":
    clean = {name: value for name, value in os.environ.items() if not name.startswith("LB_")}
    return subprocess.run(
        [sys.executable, "-m", "loadbalancer", *args],
        capture_output=True,
        text=True,
        timeout=30,
        env={**clean, **(env or {})},
    )


def test_rep_add_rm_and_get_call_a_running_load_balancer(lb: LoadBalancer) -> None:
    env = {"LB_URL": f"http://127.0.0.1:{lb.port}", "LB_ADMIN_TOKEN": "sesame"}
    assert loadbalancer("rep", env=env).stdout.split() == ["Server-1", "Server-2", "Server-3"]
    added = loadbalancer("add", "2", "mine", env=env)
    assert added.returncode == 0
    assert added.stdout.split()[3] == "mine"
    assert len(added.stdout.split()) == 5
    removed = loadbalancer("rm", "2", *added.stdout.split()[3:], env=env)
    assert removed.stdout.split() == ["Server-1", "Server-2", "Server-3"]
    got = loadbalancer("get", "/home", env=env)
    assert json.loads(got.stdout)["message"].startswith("Hello from Server: Server-")


def test_a_refused_command_ends_with_status_1_and_the_message_of_the_server(lb: LoadBalancer) -> None:
    env = {"LB_URL": f"http://127.0.0.1:{lb.port}", "LB_ADMIN_TOKEN": "sesame"}
    refused = loadbalancer("rm", "1", "stranger", env=env)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr == "<Error> hostname 'stranger' is not in the fleet\n"
    unauthorised = loadbalancer("add", "1", "--token", "wrong", env=env)
    assert unauthorised.returncode == 1
    assert "admin token" in unauthorised.stderr
    failed = loadbalancer("get", "/nowhere", env=env)
    assert failed.returncode == 1
    assert failed.stderr == "GET /nowhere answered 400\n"
    assert "does not exist in server replicas" in failed.stdout


def test_an_unreachable_load_balancer_is_status_1_and_one_line() -> None:
    port = free_port()
    failed = loadbalancer("rep", "--url", f"http://127.0.0.1:{port}")
    assert failed.returncode == 1
    assert failed.stderr.count("\n") == 1
    assert f"127.0.0.1:{port}" in failed.stderr


@pytest.mark.parametrize(
    ("args", "env", "named"),
    [
        (["--replicas", "-1"], {}, "--replicas"),
        (["--replicas", "three"], {}, "--replicas"),
        (["--replicas", "2000"], {}, "--replicas"),
        (["--port", "0"], {}, "--port"),
        (["--port", "70000"], {}, "--port"),
        (["--policy", "fastest"], {}, "--policy"),
        (["--ring", "circle"], {}, "--ring"),
        (["--load-factor", "0.5"], {}, "--load-factor"),
        (["--load-factor", "nan"], {}, "--load-factor"),
        (["--hash-on", "header:"], {}, "--hash-on"),
        (["--heartbeat-interval", "0"], {}, "--heartbeat-interval"),
        (["--connect-timeout", "-1"], {}, "--connect-timeout"),
        (["--max-fail-count", "0"], {}, "--max-fail-count"),
        (["--backend", "podman"], {}, "--backend"),
        (["--log-format", "xml"], {}, "--log-format"),
        (["--command", ""], {}, "--command"),
        (["--trusted-proxies", "::1", "--trusted-proxies", "10.0.0.0/33"], {}, "10.0.0.0/33"),
        ([], {"LB_TRUSTED_PROXIES": "::1\n10.0.0.0/33"}, "LB_TRUSTED_PROXIES: '10.0.0.0/33'"),
        (["--proxy-protocol"], {}, "--proxy-protocol: has no effect without --trusted-proxies"),
        (["--proxy-protocol", "--trusted-proxies", "::1", "--lane", "asgi"], {}, "--proxy-protocol"),
        (
            ["--workers", "2", "--lane", "asgi"],
            {},
            "--workers: more than one worker needs the fast lane and Linux",
        ),
        (["--tunnel-idle-timeout", "-1"], {}, "--tunnel-idle-timeout"),
        (["--no-such-option"], {}, "--no-such-option"),
        (["superfluous"], {}, "superfluous"),
        ([], {"LB_PORT": "http"}, "LB_PORT"),
        (["--config", "/no/such/file"], {}, "/no/such/file"),
    ],
)
def test_an_impossible_option_is_status_2_and_one_line_that_names_it(
    args: list[str], env: dict[str, str], named: str
) -> None:
    failed = loadbalancer("serve", *args, env=env)
    assert (failed.returncode, failed.stdout) == (2, "")
    assert failed.stderr.count("\n") == 1
    assert named in failed.stderr


def test_options_precede_the_environment_which_precedes_the_file(tmp_path: Path) -> None:
    config = tmp_path / "lb.toml"
    config.write_text('replicas = 1\nring = "circle"\npolicy = "circle"\n')
    failed = loadbalancer("serve", "--config", str(config), "--ring", "classic")
    assert failed.stderr == (
        f"loadbalancer serve: policy in {config}: 'circle' should be 'consistent-hash', 'round-robin', "
        "'weighted-round-robin', 'random', 'least-connections' or 'power-of-two'\n"
    )
    env = {"LB_POLICY": "square", "LB_CONFIG": str(config)}
    assert "LB_POLICY: 'square'" in loadbalancer("serve", "--ring", "classic", env=env).stderr
    assert (
        "--policy: 'line'" in loadbalancer("serve", "--policy", "line", "--ring", "classic", env=env).stderr
    )
    env = {"LB_CONFIG": str(config)}
    config.write_text("unknown = 1\n")
    assert "there is no such option" in loadbalancer("serve", env=env).stderr
    config.write_text("not toml")
    assert "is not TOML" in loadbalancer("serve", env=env).stderr


def test_every_option_of_the_contract_is_in_the_help() -> None:
    text = " ".join(loadbalancer("serve", "--help").stdout.split())
    documented = """
        host port replicas backend image command replica-port heartbeat-path heartbeat-interval
        heartbeat-timeout max-fail-count policy ring load-factor hash-on connect-timeout response-timeout
        idle-timeout drain-timeout stop-timeout admin-token log-format config
        trusted-proxies proxy-protocol tunnel-idle-timeout
    """
    for option in documented.split():
        assert f"--{option} " in text


def test_ring_prints_the_object_of_the_contract() -> None:
    shown = json.loads(loadbalancer("ring", "--json", "--ring", "classic", "--replicas", "4").stdout)
    assert list(shown) == [
        *("ring", "slots", "virtual_servers", "replicas", "requests", "counts", "peak_to_mean", "slot_share"),
    ]
    assert (shown["ring"], shown["slots"], shown["virtual_servers"]) == ("classic", 512, 9)
    assert list(shown["counts"]) == list(shown["slot_share"]) == [f"Server-{n}" for n in (1, 2, 3, 4)]
    assert sum(shown["counts"].values()) == shown["requests"] == 10_000
    assert sum(shown["slot_share"].values()) == pytest.approx(1)
    again = json.loads(loadbalancer("ring", "--json", "--ring", "classic", "--replicas", "4").stdout)
    assert again == shown, "the same seed gives the same result"


def test_ring_refuses_impossible_arguments() -> None:
    for args in (["--ring", "circle"], ["--replicas", "0"], ["--ring", "classic", "--replicas", "100"]):
        failed = loadbalancer("ring", *args)
        assert failed.returncode == 2
        assert failed.stderr.count("\n") == 1
