"""The command line of the experiments: one subcommand for each, and `report` for all of them.

Each subcommand writes its figures as JSON and its plots as SVG and PNG to the folder of results. The JSON
file also holds the command, the seed, the versions of the software and a description of the machine.
"""

import asyncio
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from analysis import plots, report
from analysis.context import Context
from analysis.experiments import load as load_experiment
from analysis.load.generator import Load, Target
from analysis.system import ExperimentError, running

RESULTS = Path("analysis/results")


class Experiments(click.Group):
    """A group of commands that accepts `A-1` as another name of `a1`."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Find the subcommand of a name."""
        return super().get_command(ctx, cmd_name.lower().replace("-", ""))


@click.group(cls=Experiments, context_settings={"help_option_names": ["-h", "--help"]})
def commands() -> None:
    """Measure the load balancer in experiments that run it, and plot the figures."""


def with_context(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that all subcommands share."""
    for option in (
        click.option("--quick", is_flag=True, help="Run only the smallest cases, as a test."),
        click.option(
            "--out",
            type=click.Path(path_type=Path),
            default=RESULTS,
            show_default=True,
            help="Folder for results.",
        ),
        click.option("--json", "as_json", is_flag=True, help="Print only the result, as JSON."),
        click.option("--seed", type=int, default=1, show_default=True, help="Seed of all random numbers."),
        click.option(
            "--requests",
            type=click.IntRange(10),
            default=10_000,
            show_default=True,
            help="Number of requests of each run.",
        ),
        click.option(
            "--backend",
            type=click.Choice(["process", "docker"]),
            default="process",
            show_default=True,
            help="Backend of the replicas.",
        ),
    ):
        command = option(command)
    return command


def make_context(options: dict[str, Any]) -> Context:
    """Make the context of an experiment from its options."""
    return Context(
        folder=options["out"],
        backend=options["backend"],
        requests=options["requests"],
        seed=options["seed"],
        quick=options["quick"],
        show=sys.stderr.isatty() and not options["as_json"],
        command="python -m analysis " + " ".join(sys.argv[1:]),
    )


def finish(context: Context, name: str, result: dict[str, Any], *, as_json: bool) -> dict[str, Any]:
    """Write the result and the plots of an experiment, print them, and return the saved result."""
    module = report.EXPERIMENTS[name]
    saved = context.save(name, result)
    for picture, figure in module.draw(result).items():
        plots.save(figure, context.folder, picture)
    click.echo(
        json.dumps(saved)
        if as_json
        else f"# {module.TITLE}\n\n{module.tell(result)}\n\nResults: {context.folder}/{name}.*"
    )
    return saved


def experiment(name: str) -> click.Command:
    """Make the subcommand of an experiment."""

    @with_context
    def command(as_json: bool, **options: Any) -> None:
        context = make_context({**options, "as_json": as_json})
        finish(context, name, asyncio.run(report.EXPERIMENTS[name].run(context)), as_json=as_json)

    module = report.EXPERIMENTS[name]
    return click.command(name, help=module.__doc__, short_help=module.TITLE)(command)


for each in report.EXPERIMENTS:
    if each != "load":
        commands.add_command(experiment(each))


@commands.command()
@click.argument("url", required=False)
@click.option(
    "--concurrency",
    type=click.IntRange(1),
    default=100,
    show_default=True,
    help="Number of clients; with --rate, the largest number of connections.",
)
@click.option(
    "--rate",
    type=click.FloatRange(0),
    default=0.0,
    show_default=True,
    help="Requests a second of an open loop; 0: closed loop.",
)
@click.option(
    "--warm-up",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Number of requests to send before the measurement.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(0, min_open=True),
    default=30.0,
    show_default=True,
    help="Seconds until a request without an answer fails.",
)
@with_context
def load(
    url: str | None,
    concurrency: int,
    rate: float,
    warm_up: int,
    timeout: float,
    as_json: bool,
    **options: Any,
) -> None:
    """Send requests to URL and measure the answers. Without URL, start a load balancer for them."""
    context = make_context({**options, "as_json": as_json})
    amount = Load(context.requests, concurrency, rate, warm_up, timeout, context.seed)
    kind = f"open loop, {rate:g} requests/s" if rate else f"closed loop, {concurrency:,} clients"

    async def run() -> dict[str, Any]:
        if url is not None:
            return {
                "url": url,
                "runs": [await load_experiment.measure(context, Target.parse(url), amount, kind)],
            }
        async with running(context.backend, 3) as system:
            target = Target.parse(system.url("/home"))
            return {
                "url": "/home, three sample replicas",
                "runs": [await load_experiment.measure(context, target, amount, kind)],
            }

    try:
        result = asyncio.run(run())
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    finish(context, "load", result, as_json=as_json)


@commands.command("report")
@click.option(
    "--page",
    type=click.Path(path_type=Path),
    default=Path("docs/analysis.md"),
    show_default=True,
    help="Page to write.",
)
@with_context
def whole_report(page: Path, as_json: bool, **options: Any) -> None:
    """Run all experiments and write a page with their results."""
    context = make_context({**options, "as_json": as_json})
    context.folder = context.folder / "report"
    began = time.monotonic()
    saved = []
    for name, module in report.EXPERIMENTS.items():
        click.echo(f"{name}: {module.TITLE}", err=True)
        saved.append(finish(context, name, asyncio.run(module.run(context)), as_json=as_json))
    minutes = (time.monotonic() - began) / 60
    report.write(page, context.folder, saved, minutes)
    click.echo(f"wrote {page} after {minutes:.1f} minutes", err=True)


def main() -> None:
    """Run the command line."""
    try:
        commands(prog_name="python -m analysis")
    except ExperimentError as error:
        print(error, file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
