"""The sources of options: the command line, the environment, a TOML file, and the defaults of `Settings`.

An error names the source of the value that it is about, so that the user knows where to mend it.
"""

import sys
import tomllib
from collections import ChainMap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from loadbalancer.settings import Settings, environment_name, option_name

Origin = Callable[[str], str]
"""Tells where the value of a field comes from, in words."""


class SettingsError(Exception):
    """An option has an unknown or impossible value. The text is one line that names the option."""


def load(options: Mapping[str, Any], config: Path | None, environ: Mapping[str, str]) -> Settings:
    """Read all options. The command line precedes the environment, and the environment precedes the file.

    Args:
        options: The values on the command line, by field name. None and () mean that an option is not given.
        config: TOML file with options as keys (either `heartbeat-path` or `heartbeat_path`), or None.
        environ: The environment. An empty variable counts as not set, because Compose files pass on
            variables that are not set as empty ones.

    Raises:
        SettingsError: A value is unknown or impossible. The text names the first such value and its source.
    """
    variables = ((name, environ.get(environment_name(name))) for name in Settings.model_fields)
    sources: list[tuple[Origin, dict[str, Any]]] = [
        (option_name, {name: value for name, value in options.items() if value not in (None, ())}),
        (environment_name, {name: text for name, text in variables if text}),
        (lambda name: f"{name.replace('_', '-')} in {config}", _read_file(config)),
    ]

    def origin(name: str) -> str:
        return next((describe(name) for describe, values in sources if name in values), option_name(name))

    try:
        settings = Settings.model_validate(dict(ChainMap(*(values for _, values in sources))))
    except ValidationError as error:
        raise SettingsError(_first_fault(error, origin)) from None
    _check_together(settings, origin)
    return settings


def _check_together(settings: Settings, origin: Origin) -> None:
    """Refuse options that are good alone, but not together."""
    if settings.replicas > settings.max_replicas:
        raise SettingsError(
            f"{origin('replicas')}: {settings.replicas} is more than --max-replicas {settings.max_replicas}"
        )
    for given, needed in (("tls_cert", "tls_key"), ("tls_key", "tls_cert")):
        if getattr(settings, given) and not getattr(settings, needed):
            raise SettingsError(f"{origin(given)}: has no effect without {option_name(needed)}")
    if settings.workers > 1 and (settings.lane == "asgi" or sys.platform != "linux"):
        raise SettingsError(f"{origin('workers')}: more than one worker needs the fast lane and Linux")
    if settings.proxy_protocol and settings.lane == "asgi":
        raise SettingsError(f"{origin('proxy_protocol')}: needs the fast lane, not --lane asgi")
    if settings.proxy_protocol and not settings.trusted_proxies:
        raise SettingsError(f"{origin('proxy_protocol')}: has no effect without --trusted-proxies")
    if settings.on_exit == "keep" and settings.effective_backend() == "process":
        raise SettingsError(
            f"{origin('on_exit')}: 'keep' needs containers: replica processes end with the load balancer"
        )


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


def _first_fault(error: ValidationError, origin: Origin) -> str:
    fault = error.errors()[0]
    name = str(fault["loc"][0])
    if fault["type"] == "extra_forbidden":
        return f"{origin(name)}: there is no such option"
    reason = fault["msg"].removeprefix("Value error, ").removeprefix("Input ")
    shown = "the given value" if name == "admin_token" else repr(fault["input"])
    return f"{origin(name)}: {shown} {reason}"
