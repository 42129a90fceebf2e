"""The commands: `serve` runs a load balancer, `rep`, `add`, `rm` and `get` talk to one, `ring` shows a ring.

Wrong usage ends with status 2 and one line that names the fault. A command that fails ends with status 1 and
the message of the load balancer.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import click
from pydantic.fields import FieldInfo
from rich.console import Console
from rich.table import Table

from loadbalancer import __version__
from loadbalancer.cli import admin_client, distribution
from loadbalancer.cli.sources import SettingsError, load
from loadbalancer.routing.ring import PRESETS
from loadbalancer.settings import ENV_PREFIX, Settings, environment_name, is_many, option_name

Command = Callable[..., Any]

DEFAULTS = Settings.model_construct()
"""The defaults of `serve`, for the commands that talk to it or show a ring."""


def main() -> None:
    """Run the command line and exit with its status."""
    try:
        status = commands(prog_name="loadbalancer", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message(), file=sys.stderr)
        status = 2
    except click.UsageError as error:
        name = error.ctx.command_path if error.ctx else "loadbalancer"
        print(f"{name}: {' '.join(error.format_message().split())}", file=sys.stderr)
        status = 2
    except admin_client.CommandError as error:
        print(error, file=sys.stderr)
        status = 1
    except (click.Abort, KeyboardInterrupt):
        status = 130
    sys.exit(status)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="loadbalancer")
def commands() -> None:
    """An HTTP load balancer that starts, monitors and replaces its own replicas."""


def _with_settings(command: Command) -> Command:
    """Add an option for each field of `Settings` to a command, in the order of the fields."""
    for name, field in reversed(Settings.model_fields.items()):
        command = _option(name, field)(command)
    return command


def _option(name: str, field: FieldInfo) -> Callable[[Command], Command]:
    many = is_many(field)
    default = {None: "unset", "": "empty", (): "none"}.get(field.default, field.default)
    choices = f": {', '.join(get_args(field.annotation))}" if get_origin(field.annotation) is Literal else ""
    repeated = "; may be given more than once" if many else ""
    lines = ", one a line" if many else ""
    text = (
        f"{field.description}{choices}{repeated} [default: {default}; env: {environment_name(name)}{lines}]"
    )
    if field.annotation is bool:
        return click.option(option_name(name), name, is_flag=True, default=None, help=text)
    # The values stay texts here: `Settings` validates the values of all sources by the same rules.
    return click.option(option_name(name), name, default=None, multiple=many, metavar="VALUE", help=text)


def _from_environment(variable: str, help_text: str, **attributes: Any) -> dict[str, Any]:
    """The attributes of an option that also has an environment variable."""
    name = ENV_PREFIX + variable
    return {"envvar": name, "help": f"{help_text} [env: {name}]", **attributes}


@commands.command()
@click.option(
    "--config", **_from_environment("CONFIG", "TOML file with options.", type=click.Path(path_type=Path))
)
@_with_settings
def serve(config: Path | None, **options: Any) -> int:
    """Run the load balancer."""
    import os
    import signal

    # The kernel ignores these signals for process 1 of a container while it has no handlers. The engine would
    # then kill the load balancer, and its replicas would go on. Nothing has started yet, so it just ends.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))
    signal.signal(signal.SIGHUP, signal.SIG_IGN)

    from loadbalancer.app import run

    try:
        settings = load(options, config, os.environ)
    except SettingsError as error:
        raise click.UsageError(str(error)) from None
    return run(settings)


def _with_url(command: Command) -> Command:
    """Add the options that identify a running load balancer to a command."""
    token = click.option("--token", **_from_environment("ADMIN_TOKEN", "Admin token of the load balancer."))
    url = click.option(
        "--url",
        default=f"http://{DEFAULTS.host}:{DEFAULTS.port}",
        show_default=True,
        **_from_environment("URL", "URL of the load balancer."),
    )
    return url(token(command))


@commands.command()
@_with_url
def rep(url: str, token: str | None) -> None:
    """List the replicas."""
    _show_members(admin_client.call(url, "GET", "/rep", token))


@commands.command()
@click.argument("n", type=int)
@click.argument("hostnames", nargs=-1)
@_with_url
def add(n: int, hostnames: tuple[str, ...], url: str, token: str | None) -> None:
    """Add N replicas. The first ones get the HOSTNAMES, the others get generated hostnames."""
    _show_members(admin_client.call(url, "POST", "/add", token, {"n": n, "hostnames": list(hostnames)}))


@commands.command()
@click.argument("n", type=int)
@click.argument("hostnames", nargs=-1)
@_with_url
def rm(n: int, hostnames: tuple[str, ...], url: str, token: str | None) -> None:
    """Remove N replicas: the HOSTNAMES, and random others up to N."""
    _show_members(admin_client.call(url, "DELETE", "/rm", token, {"n": n, "hostnames": list(hostnames)}))


@commands.command()
@click.argument("path")
@_with_url
def get(path: str, url: str, token: str | None) -> int:
    """Send GET PATH and print the body of the answer."""
    answer = admin_client.fetch(url, path, token)
    sys.stdout.buffer.write(answer.body)
    if sys.stdout.isatty() and not answer.body.endswith(b"\n"):
        print()
    if answer.status >= 400:
        raise admin_client.CommandError(f"GET {path} answered {answer.status}")
    return 0


@commands.command()
@click.option("--ring", "name", type=click.Choice(list(PRESETS)), default=DEFAULTS.ring, show_default=True)
@click.option("--replicas", type=click.IntRange(1), default=DEFAULTS.replicas, show_default=True, help="N.")
@click.option("--requests", type=click.IntRange(1, 10_000_000), default=10_000, show_default=True, help="R.")
@click.option("--seed", type=int, default=1, show_default=True, help="Seed of the random request ids.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def ring(name: str, replicas: int, requests: int, seed: int, as_json: bool) -> None:
    """Show how a ring distributes R requests with random 6-digit ids over N replicas."""
    try:
        drawn = distribution.draw(name, replicas, requests, seed)
    except ValueError as error:
        raise click.UsageError(f"--replicas: {error}") from None
    if as_json:
        print(json.dumps(drawn.as_dict()))
        return
    _table(
        f"{name}: {drawn.slots} slots, {drawn.virtual_servers} virtual servers each, "
        f"{requests} requests, peak-to-mean {drawn.peak_to_mean:.3f}",
        ("replica", "requests", "share of slots"),
        [(name, str(count), f"{drawn.slot_share[name]:.2%}") for name, count in drawn.counts.items()],
    )


def _show_members(message: Any) -> None:
    names = message["replicas"]
    _table(f"{message['N']} replicas", ("hostname",), [(name,) for name in names])


def _table(title: str, head: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    """Print a table on a terminal, and columns separated by tabs elsewhere."""
    if not sys.stdout.isatty():
        for row in rows:
            print("\t".join(row))
        return
    table = Table(*head, title=title, title_justify="left")
    for row in rows:
        table.add_row(*row)
    Console().print(table)
