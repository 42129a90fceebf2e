"""The style of all plots, and their files: SVG for pages and PNG for slides."""

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
    """Make a figure with a grid of plots; the plots are returned row by row.

    Args:
        rows: Rows of plots.
        columns: Columns of plots.
        title: Title of the figure.
        height: Height of each row, in inches.
    """
    figure = Figure(figsize=(9.0, height * rows + 0.5), layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
    grid = figure.subplots(rows, columns, squeeze=False)
    return figure, [axes for row in grid for axes in row]


def bars(axes: Axes, labels: Sequence[str], values: Sequence[float], *, form: str = "{:,.0f}") -> None:
    """Draw a bar for each label, with its value above it.

    Args:
        axes: Plot to draw in.
        labels: Labels of the bars.
        values: Heights of the bars.
        form: Format string for the values.
    """
    drawn = axes.bar(labels, values, color=[COLOURS[n % len(COLOURS)] for n in range(len(labels))], width=0.7)
    axes.bar_label(drawn, labels=[form.format(value) for value in values], fontsize=8, padding=1)
    axes.grid(axis="x", visible=False)


def slant(axes: Axes) -> None:
    """Rotate the labels of the x axis, so that long ones do not overlap."""
    for label in axes.get_xticklabels():
        label.set(rotation=35, ha="right", rotation_mode="anchor")


def save(figure: Figure, folder: Path, name: str) -> None:
    """Write a figure as SVG and as PNG.

    Args:
        figure: Figure to write.
        folder: Folder for both files; it is made if it does not exist.
        name: Name of both files without the suffix.
    """
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / f"{name}.svg", metadata={"Date": None}, facecolor="white")
    figure.savefig(folder / f"{name}.png", facecolor="white")
