"""Text files read line by line, with the line's number in every error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lightning_mtl.data.errors import DataFileError


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        line: Its line in the file, counted from 1.
        fields: Name of a column -> its text.
    """

    line: int
    fields: dict[str, str]


def read_lines(owner: str, path: Path) -> list[str]:
    """Return the lines of a UTF-8 file; a byte-order mark and carriage returns at the ends of lines are dropped.

    Lines end at line feeds alone, so that a text may hold any other kind of line break.

    Args:
        owner: Name of the class that reads, for the error.
        path: The file.

    Raises:
        DataFileError: If it is empty, or not UTF-8.
    """
    raw = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataFileError.of(
            owner, f"{path}:{line}", f"must be UTF-8, got the byte 0x{raw[error.start]:02x}", "save it as UTF-8"
        ) from error
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    if not lines:
        raise DataFileError.of(owner, path, "must hold at least one row, got an empty file", "get the file again")
    return lines


def read_tsv(
    owner: str,
    path: Path,
    needed: Sequence[str],
    columns: Sequence[str] | None = None,
    skip_short: bool = False,
) -> tuple[list[Row], int]:
    """Return the rows of a tab-separated file without quoting: quotation marks are part of the text.

    Args:
        owner: Name of the class that reads, for the error.
        path: The file.
        needed: Columns that must be there.
        columns: Names of the columns of a file without a header; None reads them from the first line.
        skip_short: Whether rows with too few columns are left out instead of raising.

    Returns:
        The rows, and how many were left out.

    Raises:
        DataFileError: If a column is absent, or a row has another number of columns than the header.
    """
    lines = read_lines(owner, path)
    first = 0 if columns is not None else 1
    names = list(columns) if columns is not None else lines[0].split("\t")
    if absent := [name for name in needed if name not in names]:
        raise DataFileError.of(
            owner,
            f"{path}:1",
            f"must have the columns {', '.join(needed)}, got {', '.join(names)} without {', '.join(absent)}",
            "use the file as it was distributed, with its header",
        )
    rows: list[Row] = []
    skipped = 0
    for number, line in enumerate(lines[first:], first + 1):
        fields = line.split("\t")
        if len(fields) != len(names):
            if skip_short and len(fields) < len(names):
                skipped += 1
                continue
            raise DataFileError.of(
                owner,
                f"{path}:{number}",
                f"must have {len(names)} columns ({', '.join(names)}), got {len(fields)}",
                "use the file as it was distributed",
            )
        rows.append(Row(number, dict(zip(names, fields, strict=True))))
    if not rows:
        raise DataFileError.of(owner, path, "must hold at least one row, got none", "get the file again")
    return rows, skipped
