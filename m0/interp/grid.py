"""What an experiment found: numbers with named axes, which print as a table and plot as a heat map."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from m0.errors import InputError, MissingExtraError
from m0.paths import path_of


@dataclass(frozen=True)
class Axis:
    """A name, and a label for each place on it."""

    name: str
    labels: Sequence[str]


def layer_head_axes(layers: int, heads: int) -> tuple[Axis, Axis]:
    """Axes of a grid with a row for each layer and a column for each head, both numbered from 0."""
    return Axis("layer", [str(i) for i in range(layers)]), Axis("head", [str(i) for i in range(heads)])


@dataclass(frozen=True)
class Grid:
    """Values over one or two named axes."""

    title: str
    axes: tuple[Axis, ...]
    values: Tensor
    """One number for each combination of labels, float64, on the CPU."""
    notes: dict[str, float] = field(default_factory=dict)
    """Numbers that belong to the whole, such as the logits an experiment started from."""

    def __post_init__(self) -> None:
        assert self.values.shape == tuple(len(axis.labels) for axis in self.axes)

    def __getitem__(self, labels: str | tuple[str, ...]) -> float:
        """The value at these labels. Raises InputError where an axis has no such label."""
        wanted = (labels,) if isinstance(labels, str) else labels
        if len(wanted) != len(self.axes):
            raise InputError(f"{len(wanted)} labels are given, but the axes are {', '.join(axis.name for axis in self.axes)}.")
        place = []
        for axis, label in zip(self.axes, wanted, strict=True):
            if label not in axis.labels:
                raise InputError(f"{axis.name} has no {label!r}.")
            place.append(list(axis.labels).index(label))
        return float(self.values[tuple(place)])

    def top(self, count: int = 10) -> list[tuple[tuple[str, ...], float]]:
        """The values furthest from zero, largest first, with their labels."""
        order = self.values.abs().flatten().argsort(descending=True, stable=True)[:count]
        places = [torch.unravel_index(number, self.values.shape) for number in order]
        return [
            (tuple(axis.labels[int(i)] for axis, i in zip(self.axes, place, strict=True)), float(self.values[place]))
            for place in places
        ]

    def __str__(self) -> str:
        lines = [self.title]
        if self.notes:
            lines.append(", ".join(f"{name} {value:.4f}" for name, value in self.notes.items()))
        if len(self.axes) == 2 and len(self.axes[1].labels) <= 12:
            rows, columns = self.axes
            width = max(len(rows.name), *(len(label) for label in rows.labels))
            cells = max(8, *(len(label) for label in columns.labels))
            lines.append(f"{rows.name:<{width}}  " + " ".join(f"{label:>{cells}}" for label in columns.labels))
            for label, values in zip(rows.labels, self.values.tolist(), strict=True):
                lines.append(f"{label:<{width}}  " + " ".join(f"{value:>{cells}.4f}" for value in values))
        elif len(self.axes) == 1:
            width = max(len(label) for label in self.axes[0].labels)
            lines += [
                f"{label:<{width}}  {value:8.4f}"
                for label, value in zip(self.axes[0].labels, self.values.tolist(), strict=True)
            ]
        else:
            lines.append(f"largest of {' x '.join(str(len(axis.labels)) for axis in self.axes)}:")
            lines += [f"{' '.join(labels)}  {value:8.4f}" for labels, value in self.top()]
        return "\n".join(lines)

    def plot(self, path: str | os.PathLike[str] | None = None) -> Any:
        """A heat map (bars where there is one axis) as a matplotlib figure; saved where a path is given.

        Raises MissingExtraError without matplotlib.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError:
            raise MissingExtraError("plots need matplotlib: pip install 'm0-reranker[plot]'.") from None
        rows = self.axes[0]
        columns = self.axes[1] if len(self.axes) == 2 else Axis("", [""] * 10)
        figure = Figure(figsize=(2.5 + 0.32 * len(columns.labels), 1.5 + 0.26 * len(rows.labels)), layout="constrained")
        axes = figure.subplots()
        if len(self.axes) == 1:
            axes.barh(range(len(rows.labels)), self.values.numpy(), color="#e66101")
            axes.invert_yaxis()
        else:
            limit = max(float(self.values.abs().nan_to_num().max()), 1e-12)
            image = axes.imshow(self.values.numpy(), cmap="PuOr_r", vmin=-limit, vmax=limit, aspect="auto")
            axes.set_xticks(range(len(columns.labels)), columns.labels, rotation=90, fontsize=7)
            axes.set_xlabel(columns.name)
            figure.colorbar(image)
        axes.set_yticks(range(len(rows.labels)), rows.labels, fontsize=7)
        axes.set_ylabel(rows.name)
        axes.set_title(self.title, fontsize=9)
        if path is not None:
            save_figure(figure, path)
        return figure


def save_figure(figure: Any, path: str | os.PathLike[str]) -> None:
    """Write a matplotlib figure. Raises InputError where the path refuses or names no kind of picture that matplotlib writes."""
    path = path_of(path)
    if os.path.isdir(path):
        raise InputError(f"{path} cannot be written: it is a folder.")
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be written: {getattr(error, 'strerror', None) or error}.") from None


@dataclass(frozen=True)
class Agreement:
    """How alike two grids are."""

    pearson: float
    spearman: float
    largest_difference: float

    def __str__(self) -> str:
        return f"Pearson {self.pearson:.3f}, Spearman {self.spearman:.3f}, largest difference {self.largest_difference:.4f}"


def agreement(one: Grid, other: Grid) -> Agreement:
    """Correlations and largest difference of two grids over the same axes. Raises InputError where these differ."""
    if one.axes != other.axes:
        raise InputError("the two grids have different axes.")
    a, b = one.values.flatten(), other.values.flatten()
    return Agreement(pearson_correlation(a, b), pearson_correlation(ranks(a), ranks(b)), float((a - b).abs().max()))


def pearson_correlation(a: Tensor, b: Tensor) -> float:
    """Pearson's correlation of two series, (values,) each; NaN where one of them is constant."""
    a, b = a - a.mean(), b - b.mean()
    return float((a @ b) / (a.norm() * b.norm()))


def ranks(values: Tensor) -> Tensor:
    """Ranks from 0 of a series, (values,), ties sharing their mean, float64."""
    _, inverse, counts = torch.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    return (last - (counts + 1) / 2)[inverse]
