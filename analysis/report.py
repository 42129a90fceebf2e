"""The report: a page whose figures and plots all come from the results of the experiments."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from analysis.experiments import a1, a2, a3, a4, bounded, disruption, load, peers, policies, scale

EXPERIMENTS = {
    "load": load,
    "a1": a1,
    "a2": a2,
    "a3": a3,
    "a4": a4,
    "disruption": disruption,
    "bounded": bounded,
    "policies": policies,
    "peers": peers,
    "scale": scale,
}
"""All experiments by name, in the order of the report."""


def write(page: Path, folder: Path, saved: Sequence[dict[str, Any]], minutes: float) -> None:
    """Write the page.

    Args:
        page: File to write.
        folder: Folder of the plots.
        saved: Results of all experiments, as `Context.save` returns them.
        minutes: Duration of all experiments together.
    """
    machine = saved[0]["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    places = Path(*[".."] * len(page.parent.parts)) if not page.is_absolute() else folder
    lines = [
        "# Analysis",
        "",
        "These experiments run the load balancer and measure how evenly it spreads requests, how it scales, how fast it "
        "recovers, how its hash functions differ, and how it compares with nginx and HAProxy. `make analysis` runs them and "
        "writes this page with all its figures and plots. The data of each plot is in a JSON file beside it.",
        "",
        f"All figures are from one run of {minutes:.0f} minutes with replicas as {_plural(saved[0]['backend'])} and seed "
        f"{saved[0]['seed']}, on {machine['cores']} cores and {machine['memory_gib']} GiB, {machine['system']}, Python "
        f"{machine['python']}; {versions}. The load generator, the load balancer and the replicas share the cores. Absolute "
        "figures hold for this machine only: compare the rows of a table with each other.",
        "",
    ]
    for one in saved:
        module = EXPERIMENTS[one["experiment"]]
        lines += [f"## {module.TITLE}", ""]
        for name in module.draw(one["result"]):
            lines += [f"![{module.TITLE}]({(places / folder / name).as_posix()}.svg)", ""]
        lines += [module.tell(one["result"]), ""]
        lines += [f"`python -m analysis {one['experiment']}`", ""]
    page.write_text("\n".join(lines))


def _plural(backend: str) -> str:
    return "containers" if backend == "docker" else "processes"
