"""Every option of `serve`, once: its type, default, limits and help.

An option can come from the command line, from an environment variable (`LB_` and the name in upper
case) or from a TOML file, in this order of precedence. `cli` makes its options from the fields
below, so a new setting is one new field.
"""

import os
import re
import shlex
import sys
import tomllib
from collections.abc import Mapping
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, ValidationError
from pydantic.fields import FieldInfo

IN_IMAGE = "LOADBALANCER_IN_IMAGE"
"""Set to 1 in the load balancer's own container image: `--backend auto` goes by it."""

ENV_PREFIX = "LB_"

HASH_ON = re.compile(r"request-id|client-ip|path|(header|cookie|query):[!#$%&'*+.^_`|~0-9A-Za-z-]+")


class SettingsError(Exception):
    """An option has an unknown or impossible value; the text is one line that names it."""


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
    """The values of an option that may be given more than once, one a line as in its variable."""
    if isinstance(value, str):
        return tuple(filter(None, (line.strip() for line in value.splitlines())))
    return value


def _weights(value: str) -> str:
    parse_weights(value)
    return value


def parse_weights(text: str) -> dict[str, int]:
    """Read `NAME=W,NAME=W…`.

    Raises:
        ValueError: A part is not of that form, or a weight is not from 1 to 1000.
    """
    weights: dict[str, int] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, weight = part.partition("=")
        if not (name and equals and weight.isascii() and weight.isdigit() and 1 <= int(weight) <= 1000):
            raise ValueError(f"must be NAME=WEIGHT,… with weights from 1 to 1000, which {part!r} is not")
        weights[name] = int(weight)
    return weights


Port = Annotated[int, Field(ge=1, le=65535)]
Seconds = Annotated[float, Field(gt=0, le=86400, allow_inf_nan=False)]
Patience = Annotated[float, Field(ge=0, le=86400, allow_inf_nan=False)]
Networks = Annotated[tuple[Annotated[str, AfterValidator(_network)], ...], BeforeValidator(_lines)]


class Settings(BaseModel):
    """The options of `serve`, validated."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    host: str = Field("127.0.0.1", min_length=1, description="address on which clients connect")
    port: Port = Field(5000, description="port on which clients connect")
    tls_cert: str = Field(
        "", description="PEM file with the certificate chain for HTTPS; SIGHUP has it read again"
    )
    tls_key: str = Field("", description="PEM file with its private key")
    replicas: int = Field(3, ge=0, description="N, the number of replicas to keep, whatever fails")
    max_replicas: int = Field(100, ge=1, le=1000, description="refuse to grow beyond this many replicas")
    backend: Literal["auto", "docker", "process"] = Field(
        "auto", description="where replicas run (auto: docker in the load balancer's image, else process)"
    )
    image: str = Field("loadbalancer-server:latest", min_length=1, description="docker: image of a replica")
    command: Annotated[str, AfterValidator(_command)] = Field(
        "python -m server",
        description="process: command of a replica; it gets PORT, HOSTNAME and SERVER_ID in its environment",
    )
    replica_port: Port = Field(5000, description="docker: port on which a replica listens")
    fleet: str = Field(
        "default",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$",
        description="docker: name under which replicas are labelled and adopted again",
    )
    network: str = Field(
        "",
        description="docker: network of the replicas; default: the load balancer's own, else one made for it",
    )
    heartbeat_path: Annotated[str, AfterValidator(_path)] = Field(
        "/heartbeat", description="path of the heartbeat; any answer below 500 is a good one"
    )
    heartbeat_interval: Seconds = Field(1.0, description="seconds between two heartbeats of a replica")
    heartbeat_timeout: Seconds = Field(1.0, description="seconds after which a heartbeat counts as missed")
    max_fail_count: int = Field(3, ge=1, le=1000, description="consecutive misses that mean dead")
    start_timeout: Seconds = Field(
        30.0, description="seconds a new replica has until its first good heartbeat"
    )
    lane: Literal["fast", "asgi"] = Field(
        "fast", description="what carries requests: our own HTTP/1.1, or Hypercorn, Quart and aiohttp"
    )
    workers: int = Field(
        1, ge=1, le=64, description="fast lane: processes that carry requests; 1: the load balancer's own"
    )
    policy: Literal[
        "consistent-hash",
        "round-robin",
        "weighted-round-robin",
        "random",
        "least-connections",
        "power-of-two",
    ] = Field("consistent-hash", description="how a replica is chosen for a request")
    weights: Annotated[str, AfterValidator(_weights)] = Field(
        "", description="for weighted-round-robin: HOSTNAME=WEIGHT,…; others weigh 1"
    )
    ring: Literal["classic", "classic-modified", "classic-sha256", "default"] = Field(
        "default", description="the ring's arithmetic, for consistent-hash"
    )
    load_factor: Annotated[float, AfterValidator(_load_factor)] = Field(
        1.25,
        allow_inf_nan=False,
        description="for consistent-hash: no replica holds more than this × the mean in flight; 0: no bound",
    )
    hash_on: Annotated[str, AfterValidator(_hash_on)] = Field(
        "request-id",
        description="what is hashed: request-id, client-ip, path, header:NAME, cookie:NAME or query:NAME",
    )
    trusted_proxies: Networks = Field(
        (), description="address or network (CIDR) of a proxy whose forwarding headers are believed"
    )
    proxy_protocol: bool = Field(
        False, description="fast lane: trusted proxies begin with HAProxy's PROXY header, version 1 or 2"
    )
    connect_timeout: Seconds = Field(1.0, description="seconds to connect to a replica")
    response_timeout: Seconds = Field(
        60.0, description="seconds a replica may take to begin or continue its answer"
    )
    head_timeout: Seconds = Field(15.0, description="seconds the head of a request may take to come")
    idle_timeout: Seconds = Field(75.0, description="seconds an idle client connection is kept open")
    tunnel_idle_timeout: Patience = Field(
        0.0, description="seconds without a byte either way that end a tunnel or event stream; 0: never"
    )
    max_head: int = Field(
        32 * 1024, ge=1024, le=1 << 20, description="bytes of a request's line and headers together"
    )
    max_headers: int = Field(200, ge=1, le=10_000, description="headers of a request")
    max_target: int = Field(16 * 1024, ge=1, le=1 << 20, description="bytes of a request's target")
    max_body: int = Field(0, ge=0, description="bytes of a request's body; 0: no bound")
    max_connections: int = Field(0, ge=0, description="client connections open at once; 0: no bound")
    max_client_connections: int = Field(0, ge=0, description="the same from one address; 0: no bound")
    queue_timeout: Patience = Field(
        2.0, description="seconds a request may wait for a replica when none is in rotation"
    )
    queue_size: int = Field(1024, ge=0, description="requests that may wait for a replica at once")
    eject_after: int = Field(
        5, ge=0, description="failed requests in a row that take a replica out for a while; 0: never"
    )
    eject_time: Seconds = Field(
        5.0, description="seconds the first time; doubles each further time, up to 300"
    )
    slow_start: Patience = Field(
        0.0, description="seconds in which a recovered replica comes to its full share of requests"
    )
    drain_timeout: Patience = Field(10.0, description="seconds a leaving replica may finish its requests")
    stop_timeout: Patience = Field(
        5.0, description="seconds between SIGTERM and SIGKILL for a leaving replica"
    )
    on_exit: Literal["remove", "keep"] = Field(
        "remove", description="what happens to the replicas when the load balancer ends in order"
    )
    admin_token: SecretStr | None = Field(
        None, min_length=1, description="when set, /add, /rm and /lb/… want Authorization: Bearer TOKEN"
    )
    access_log: bool = Field(False, description="log every request")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least level to log")
    log_format: Literal["auto", "text", "json"] = Field(
        "auto", description="form of the log (auto: text on a terminal, else json)"
    )

    def effective_backend(self) -> Literal["docker", "process"]:
        """The backend that `backend` means on this machine."""
        if self.backend != "auto":
            return self.backend
        return "docker" if os.environ.get(IN_IMAGE) == "1" else "process"


def environment_name(field: str) -> str:
    """The environment variable of an option."""
    return ENV_PREFIX + field.upper()


def option_name(field: str) -> str:
    """The command-line option of a field."""
    return "--" + field.replace("_", "-")


def is_many(field: FieldInfo) -> bool:
    """Whether an option may be given more than once: one value a line in its variable, a list in TOML."""
    return isinstance(field.default, tuple)


def load(options: Mapping[str, Any], config: Path | None, environ: Mapping[str, str]) -> Settings:
    """Join the sources: option, else environment, else file, else default.

    Args:
        options: What was given on the command line, by field name; None and () mean not given.
        config: TOML file with fields as keys (either `heartbeat-path` or `heartbeat_path`), or None.
        environ: The environment. An empty variable counts as not set, as compose files write it.

    Raises:
        SettingsError: One line that names the first value that is unknown or impossible, and its source.
    """
    values: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for name, value in _read_file(config).items():
        values[name], origin[name] = value, f"{name.replace('_', '-')} in {config}"
    for name in Settings.model_fields:
        variable = environment_name(name)
        if environ.get(variable):
            values[name], origin[name] = environ[variable], variable
        if options.get(name) not in (None, ()):
            values[name], origin[name] = options[name], option_name(name)
    try:
        settings = Settings.model_validate(values)
    except ValidationError as error:
        raise SettingsError(_first_fault(error, origin)) from None
    if settings.replicas > settings.max_replicas:
        raise SettingsError(
            f"{origin.get('replicas', '--replicas')}: {settings.replicas} is more than "
            f"--max-replicas {settings.max_replicas}"
        )
    for given, wanting in (("tls_cert", "tls_key"), ("tls_key", "tls_cert")):
        if getattr(settings, given) and not getattr(settings, wanting):
            raise SettingsError(f"{origin[given]}: is of no use without {option_name(wanting)}")
    if settings.workers > 1 and (settings.lane == "asgi" or sys.platform != "linux"):
        raise SettingsError(f"{origin['workers']}: more than one worker is for the fast lane, on Linux")
    if settings.proxy_protocol and settings.lane == "asgi":
        raise SettingsError(f"{origin['proxy_protocol']}: is for the fast lane, not --lane asgi")
    if settings.proxy_protocol and not settings.trusted_proxies:
        raise SettingsError(f"{origin['proxy_protocol']}: is of no use without --trusted-proxies")
    if settings.on_exit == "keep" and settings.effective_backend() == "process":
        raise SettingsError(
            f"{origin.get('on_exit', '--on-exit')}: 'keep' is for containers: processes end with their parent"
        )
    return settings


def _read_file(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        with path.open("rb") as file:
            table = tomllib.load(file)
    except OSError as error:
        raise SettingsError(f"--config: cannot read {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"--config: {path} is not TOML: {error}") from None
    return {key.replace("-", "_"): value for key, value in table.items()}


def _first_fault(error: ValidationError, origin: Mapping[str, str]) -> str:
    fault = error.errors()[0]
    name = str(fault["loc"][0])
    source = origin.get(name, option_name(name))
    if fault["type"] == "extra_forbidden":
        return f"{source}: there is no such option"
    reason = fault["msg"].removeprefix("Value error, ").removeprefix("Input ")
    shown = "the given value" if name == "admin_token" else repr(fault["input"])
    return f"{source}: {shown} {reason}"
