"""Every option of `serve`, once: its type, default, limits and help.

`cli.commands` makes a command-line option of each field, and `cli.sources` reads the values from the command
line, the environment and a file. So a new option is one new field.
"""

import os
import re
import shlex
from ipaddress import ip_network
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr
from pydantic.fields import FieldInfo

IN_IMAGE = "LOADBALANCER_IN_IMAGE"
"""The environment variable that is 1 in the load balancer's own container image, for `--backend auto`."""

ENV_PREFIX = "LB_"

HASH_ON = re.compile(r"request-id|client-ip|path|(header|cookie|query):[!#$%&'*+.^_`|~0-9A-Za-z-]+")


def _load_factor(value: float) -> float:
    if value == 0 or value >= 1:
        return value
    raise ValueError("must be 0 (off) or at least 1")


def _hash_on(value: str) -> str:
    if HASH_ON.fullmatch(value):
        return value
    raise ValueError("must be request-id, client-ip, path, header:NAME, cookie:NAME or query:NAME")


def _path(value: str) -> str:
    if re.fullmatch(r"/[\x21-\x7e]*", value) and "#" not in value:
        return value
    raise ValueError("must be a path that begins with /")


def _command(value: str) -> str:
    try:
        words = shlex.split(value)
    except ValueError as error:
        raise ValueError(f"is not a command line: {error}") from None
    if words:
        return value
    raise ValueError("must name a program")


def _network(value: str) -> str:
    try:
        ip_network(value, strict=False)
    except ValueError:
        raise ValueError("must be an address or a network such as 10.0.0.0/8") from None
    return value


def _lines(value: Any) -> Any:
    """Split the text of an environment variable, which has one value on each line."""
    if isinstance(value, str):
        return tuple(filter(None, (line.strip() for line in value.splitlines())))
    return value


def _weights(value: str) -> str:
    parse_weights(value)
    return value


def parse_weights(text: str) -> dict[str, int]:
    """Read the option `--weights`.

    Args:
        text: `HOSTNAME=WEIGHT,HOSTNAME=WEIGHT…`; may be empty.

    Raises:
        ValueError: A part is not of that form, or a weight is not from 1 to 1000.
    """
    weights: dict[str, int] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, weight = part.partition("=")
        if not (name and equals and weight.isascii() and weight.isdigit() and 1 <= int(weight) <= 1000):
            raise ValueError(f"must be NAME=WEIGHT,… with weights from 1 to 1000, and {part!r} is not")
        weights[name] = int(weight)
    return weights


Port = Annotated[int, Field(ge=1, le=65535)]
Seconds = Annotated[float, Field(gt=0, le=86400, allow_inf_nan=False)]
SecondsOrZero = Annotated[float, Field(ge=0, le=86400, allow_inf_nan=False)]
Networks = Annotated[tuple[Annotated[str, AfterValidator(_network)], ...], BeforeValidator(_lines)]


class Settings(BaseModel):
    """The options of `serve`, validated."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    host: str = Field("127.0.0.1", min_length=1, description="address on which clients connect")
    port: Port = Field(5000, description="port on which clients connect")
    tls_cert: str = Field("", description="PEM file with the certificate chain for HTTPS; SIGHUP reloads it")
    tls_key: str = Field(
        "", description="PEM file with the private key of the certificate; SIGHUP reloads it"
    )
    replicas: int = Field(3, ge=0, description="N, the number of replicas; a replica that fails is replaced")
    max_replicas: int = Field(100, ge=1, le=1000, description="refuse to grow beyond this many replicas")
    backend: Literal["auto", "docker", "process"] = Field(
        "auto", description="where replicas run (auto: docker in the load balancer's image, else process)"
    )
    image: str = Field("loadbalancer-server:latest", min_length=1, description="docker: image of a replica")
    command: Annotated[str, AfterValidator(_command)] = Field(
        "python -m server",
        description="process: command of a replica; its environment has PORT, HOSTNAME and SERVER_ID",
    )
    replica_port: Port = Field(5000, description="docker: port on which a replica listens")
    fleet: str = Field(
        "default",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$",
        description="docker: name of the fleet; its containers carry the name as a label",
    )
    network: str = Field(
        "",
        description="docker: network of the replicas; default: the load balancer's own, else a new one",
    )
    heartbeat_path: Annotated[str, AfterValidator(_path)] = Field(
        "/heartbeat", description="path of the heartbeat; any status below 500 is a success"
    )
    heartbeat_interval: Seconds = Field(1.0, description="seconds between two heartbeats of a replica")
    heartbeat_timeout: Seconds = Field(1.0, description="seconds after which a heartbeat counts as missed")
    max_fail_count: int = Field(
        3, ge=1, le=1000, description="consecutive missed heartbeats after which a replica is replaced"
    )
    start_timeout: Seconds = Field(
        30.0, description="seconds between the start of a replica and its first successful heartbeat"
    )
    lane: Literal["fast", "asgi"] = Field(
        "fast", description="implementation of the data path: our own HTTP/1.1, or Hypercorn and aiohttp"
    )
    workers: int = Field(
        1, ge=1, le=64, description="fast lane: worker processes; 1: the main process serves alone"
    )
    policy: Literal[
        "consistent-hash",
        "round-robin",
        "weighted-round-robin",
        "random",
        "least-connections",
        "power-of-two",
    ] = Field("consistent-hash", description="policy that chooses the replica of a request")
    weights: Annotated[str, AfterValidator(_weights)] = Field(
        "", description="for weighted-round-robin: HOSTNAME=WEIGHT,…; the weight of all others is 1"
    )
    ring: Literal["classic", "classic-modified", "classic-sha256", "default"] = Field(
        "default", description="for consistent-hash: preset of the ring"
    )
    load_factor: Annotated[float, AfterValidator(_load_factor)] = Field(
        1.25,
        allow_inf_nan=False,
        description="for consistent-hash: maximum load of a replica, as a multiple of the mean; 0: unlimited",
    )
    hash_on: Annotated[str, AfterValidator(_hash_on)] = Field(
        "request-id",
        description="key to hash: request-id, client-ip, path, header:NAME, cookie:NAME or query:NAME",
    )
    trusted_proxies: Networks = Field(
        (), description="address or network (CIDR) of a proxy whose forwarding headers are trusted"
    )
    proxy_protocol: bool = Field(
        False, description="fast lane: require HAProxy's PROXY header, version 1 or 2, from trusted proxies"
    )
    connect_timeout: Seconds = Field(1.0, description="maximum seconds to connect to a replica")
    response_timeout: Seconds = Field(
        60.0, description="maximum seconds until a replica begins or continues its answer"
    )
    head_timeout: Seconds = Field(15.0, description="maximum seconds to receive the head of a request")
    idle_timeout: Seconds = Field(75.0, description="seconds after which an idle client connection is closed")
    tunnel_idle_timeout: SecondsOrZero = Field(
        0.0, description="seconds without data after which a tunnel or an event stream ends; 0: never"
    )
    max_head: int = Field(
        32 * 1024, ge=1024, le=1 << 20, description="maximum bytes of a request line and its headers"
    )
    max_headers: int = Field(200, ge=1, le=10_000, description="maximum number of headers of a request")
    max_target: int = Field(16 * 1024, ge=1, le=1 << 20, description="maximum bytes of a request target")
    max_body: int = Field(0, ge=0, description="maximum bytes of a request body; 0: unlimited")
    max_connections: int = Field(0, ge=0, description="maximum open client connections; 0: unlimited")
    max_client_connections: int = Field(
        0, ge=0, description="maximum open client connections from one address; 0: unlimited"
    )
    queue_timeout: SecondsOrZero = Field(
        2.0, description="maximum seconds that a request waits while no replica is in rotation"
    )
    queue_size: int = Field(1024, ge=0, description="maximum number of requests that wait for a replica")
    eject_after: int = Field(
        5, ge=0, description="consecutive failed requests after which a replica is ejected; 0: never"
    )
    eject_time: Seconds = Field(
        5.0, description="seconds of the first ejection; each further one lasts twice as long, up to 300"
    )
    slow_start: SecondsOrZero = Field(
        0.0, description="seconds in which the share of a recovered replica grows to its normal share"
    )
    drain_timeout: SecondsOrZero = Field(
        10.0, description="maximum seconds for a leaving replica to finish its requests"
    )
    stop_timeout: SecondsOrZero = Field(
        5.0, description="seconds between SIGTERM and SIGKILL for a leaving replica"
    )
    on_exit: Literal["remove", "keep"] = Field(
        "remove", description="whether an orderly shutdown removes or keeps the replicas"
    )
    admin_token: SecretStr | None = Field(
        None, min_length=1, description="token that /add, /rm and /lb/… require (Authorization: Bearer TOKEN)"
    )
    access_log: bool = Field(False, description="log every request")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="lowest level to log")
    log_format: Literal["auto", "text", "json"] = Field(
        "auto", description="format of the log (auto: text on a terminal, else json)"
    )

    def effective_backend(self) -> Literal["docker", "process"]:
        """Resolve `backend`: `auto` is docker inside the load balancer's image, and process elsewhere."""
        if self.backend != "auto":
            return self.backend
        return "docker" if os.environ.get(IN_IMAGE) == "1" else "process"


def environment_name(field: str) -> str:
    """The environment variable of a field."""
    return ENV_PREFIX + field.upper()


def option_name(field: str) -> str:
    """The command-line option of a field."""
    return "--" + field.replace("_", "-")


def is_many(field: FieldInfo) -> bool:
    """Whether an option may be given more than once. TOML has a list, the variable has one value a line."""
    return isinstance(field.default, tuple)
