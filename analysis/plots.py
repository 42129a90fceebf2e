"""How plots look here, and how they are written: each as SVG for pages and as PNG for slides."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

mpl.use("Agg")

style.use(Path(__file__).with_name("house.mplstyle"))

COLOURS: list[str] = mpl.rcParams["axes.prop_cycle"].by_key()["color"]


def panels(rows: int, columns: int, title: str, *, height: float = 3.2) -> tuple[Figure, list[Axes]]:
    """A figure with so many plots, row by row.

    Args:
        rows: Of plots.
        columns: Of plots.
        title: Of the whole.
        height: Of each row, in inches.
    """
    figure = Figure(figsize=(9.0, height * rows + 0.5), layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
    grid = figure.subplots(rows, columns, squeeze=False)
    return figure, [axes for row in grid for axes in row]


def bars(axes: Axes, labels: Sequence[str], values: Sequence[float], *, form: str = "{:,.0f}") -> None:
    """A bar for each label, with its value on it.

    Args:
        axes: Where.
        labels: Under the bars.
        values: Their heights.
        form: How values are written.
    """
    drawn = axes.bar(labels, values, color=[COLOURS[n % len(COLOURS)] for n in range(len(labels))], width=0.7)
    axes.bar_label(drawn, labels=[form.format(value) for value in values], fontsize=8, padding=1)
    axes.grid(axis="x", visible=False)


def slant(axes: Axes) -> None:
    """Turn the labels under the bars, so that long ones have room."""
    for label in axes.get_xticklabels():
        label.set(rotation=35, ha="right", rotation_mode="anchor")


def save(figure: Figure, folder: Path, name: str) -> None:
    """Write a figure.

    Args:
        figure: The figure.
        folder: Where to.
        name: Of the files, without ending.
    """
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / f"{name}.svg", metadata={"Date": None}, facecolor="white")
    figure.savefig(folder / f"{name}.png", facecolor="white")
