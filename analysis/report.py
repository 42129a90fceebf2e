"""The report: a page made of results, in which no figure is typed by hand."""

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
"""In the order in which the report tells of them."""


def write(page: Path, folder: Path, wholes: Sequence[dict[str, Any]], minutes: float) -> None:
    """Write the page.

    Args:
        page: The file.
        folder: Where the pictures are.
        wholes: What `Context.keep` has returned, one for each experiment.
        minutes: That the whole has taken.
    """
    machine = wholes[0]["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    places = Path(*[".."] * len(page.parent.parts)) if not page.is_absolute() else folder
    lines = [
        "# Analysis",
        "",
        "What one asks of a load balancer, answered by runs of this one: is it even, does it scale, how fast does it recover, what does "
        "the hash change, how does it compare. This page, its figures and its pictures are made by `make analysis`; nothing in "
        "them is typed by hand. Every picture's data lies beside it as JSON.",
        "",
        f"Measured in one run of {minutes:.0f} minutes, replicas as {_plural(wholes[0]['backend'])}, seed {wholes[0]['seed']}, on "
        f"{machine['cores']} cores and {machine['memory_gib']} GiB, {machine['system']}, Python {machine['python']}; {versions}. The load generator, "
        "the load balancer and the replicas share the cores: absolute figures are this machine's, and it is the comparisons that hold.",
        "",
    ]
    for whole in wholes:
        module = EXPERIMENTS[whole["experiment"]]
        lines += [f"## {module.TITLE}", ""]
        for name in module.draw(whole["result"]):
            lines += [f"![{module.TITLE}]({(places / folder / name).as_posix()}.svg)", ""]
        lines += [module.tell(whole["result"]), ""]
        lines += [f"`python -m analysis {whole['experiment']}`", ""]
    page.write_text("\n".join(lines))


def _plural(backend: str) -> str:
    return "containers" if backend == "docker" else "processes"
