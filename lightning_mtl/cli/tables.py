"""Tables of runs: for a terminal, in Markdown, LaTeX and CSV."""

from __future__ import annotations

import csv
import fnmatch
import io
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

Format = Literal["table", "md", "csv", "latex"]
Directions = Mapping[str, Mapping[str, bool]]

_PIPED_WIDTH = 1000  # characters; a table in a pipe or file is not folded


@dataclass(frozen=True)
class Row:
    """Runs of one configuration, which differ by their seed.

    Args:
        label: Their name.
        runs: How many there are.
        values: ``(task, metric)`` -> the value of every run that has it.
        delta_m: Change against the baselines of every run, in percent; empty without baselines.
        cost: Time of a training step of every run, in proportion to that of a run it is compared with.
        competes: Whether it can be the best of a column; not so for baselines.
    """

    label: str
    runs: int
    values: Mapping[tuple[str, str], Sequence[float]]
    delta_m: Sequence[float]
    cost: Sequence[float] = ()
    competes: bool = True


def select(rows: Sequence[Row], patterns: Sequence[str]) -> list[Row]:
    """Keep the metrics whose ``task/metric`` matches one of these shell patterns."""
    return [
        replace(
            row,
            values={
                (task, metric): found
                for (task, metric), found in row.values.items()
                if any(fnmatch.fnmatchcase(f"{task}/{metric}", pattern) for pattern in patterns)
            },
        )
        for row in rows
    ]


def render(rows: Sequence[Row], directions: Directions, style: Format) -> str:
    """Return the comparison as text that ends with a line break.

    Args:
        rows: One per configuration.
        directions: Task -> metric -> whether higher is better; the best mean of a column is set in bold.
        style: ``"table"`` for a terminal, one column per configuration. The others have one row per configuration:
            ``"md"``, ``"latex"`` (for the package booktabs), ``"csv"`` (means and deviations in columns of their own).
    """
    if style == "csv":
        return _csv(rows)
    columns = _columns(rows, directions)
    latex = style == "latex"
    bold = {"table": "[bold]{}[/bold]", "md": "**{}**", "latex": r"\textbf{{{}}}"}[style]
    header = ["run", "seeds", *(_title(column, latex) for column in columns)]
    body = []
    for i, row in enumerate(rows):
        line = [_escape(row.label) if latex else row.label, str(row.runs)]
        for column in columns:
            text = _mean_std(column.values[i], column.number, latex)
            line.append(bold.format(text) if i in column.best else text)
        body.append(line)
    return {"table": _terminal, "md": _markdown, "latex": _latex}[style](header, body)


@dataclass(frozen=True)
class _Column:
    """A title, its direction, the format of its numbers, the values of every row, and the rows with the best mean."""

    title: str
    higher_is_better: bool | None
    number: str
    values: Sequence[Sequence[float]]
    best: frozenset[int] = frozenset()


def _columns(rows: Sequence[Row], directions: Directions) -> list[_Column]:
    columns = [
        _Column(f"{task}/{metric}", directions.get(task, {}).get(metric), ".4g", [r.values.get(key, ()) for r in rows])
        for key in dict.fromkeys(key for row in rows for key in row.values)
        for task, metric in [key]
    ]
    if any(row.delta_m for row in rows):
        columns.append(_Column("Δm %", True, "+.2f", [row.delta_m for row in rows]))
    if any(row.cost for row in rows):
        columns.append(_Column("rel. step time", None, ".2f", [row.cost for row in rows]))
    return [replace(column, best=_best(rows, column)) for column in columns]


def _best(rows: Sequence[Row], column: _Column) -> frozenset[int]:
    if column.higher_is_better is None or sum(row.competes for row in rows) < 2:
        return frozenset()
    compared = enumerate(zip(rows, column.values, strict=True))
    means = {i: statistics.fmean(values) for i, (row, values) in compared if row.competes and values}
    if not means:
        return frozenset()
    best = max(means.values()) if column.higher_is_better else min(means.values())
    return frozenset(i for i, mean in means.items() if mean == best)


def _title(column: _Column, latex: bool) -> str:
    if latex:
        arrow = {True: r" $\uparrow$", False: r" $\downarrow$", None: ""}[column.higher_is_better]
        return _escape(column.title).replace("Δm", r"$\Delta_m$") + arrow
    return column.title + {True: " ↑", False: " ↓", None: ""}[column.higher_is_better]


def _mean_std(values: Sequence[float], number: str, latex: bool) -> str:
    if not values:
        return "-"
    mean = format(statistics.fmean(values), number)
    if len(values) == 1:
        return mean
    spread = format(statistics.stdev(values), {".4g": ".2g"}.get(number, number.lstrip("+")))
    return mean + (r" $\pm$ " if latex else " ± ") + spread


def _terminal(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """Return a table on its side: runs are few and metrics many, and a terminal is narrow."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table()
    for i, title in enumerate([header[0], *(escape(line[0]) for line in body)]):
        table.add_column(title, justify="right" if i else "left", overflow="fold")
    for i, title in enumerate(header[1:], 1):
        table.add_row(title, *(line[i] for line in body))
    on_terminal = sys.stdout.isatty()
    output = io.StringIO()
    Console(file=output, force_terminal=on_terminal, width=None if on_terminal else _PIPED_WIDTH).print(table)
    return output.getvalue()


def _markdown(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    lines = [header, [":--", *["--:"] * (len(header) - 1)], *body]
    return "".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |\n" for line in lines)


def _latex(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    rows = [" & ".join(line) + r" \\" for line in body]
    top = [rf"\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}", r"\toprule", " & ".join(header) + r" \\", r"\midrule"]
    return "\n".join([*top, *rows, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _escape(text: str) -> str:
    return "".join(rf"\{letter}" if letter in "_%&#${}" else letter for letter in text)


def _csv(rows: Sequence[Row]) -> str:
    columns = list(dict.fromkeys(column for row in rows for column in row.values))
    output = io.StringIO()
    writer = csv.writer(output, lineterminator="\n")
    costs = any(row.cost for row in rows)
    titles = [*(f"{task}/{metric}" for task, metric in columns), "delta_m", *(["step_time"] if costs else [])]
    writer.writerow(["run", "seeds", *(f"{title}{part}" for title in titles for part in ("", "_std"))])
    for row in rows:
        line: list[Any] = [row.label, row.runs]
        for values in (
            *(row.values.get(column, ()) for column in columns),
            row.delta_m,
            *([row.cost] if costs else []),
        ):
            line.append(statistics.fmean(values) if values else "")
            line.append(statistics.stdev(values) if len(values) > 1 else "")
        writer.writerow(line)
    return output.getvalue()
