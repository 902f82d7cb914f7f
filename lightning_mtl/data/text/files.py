"""Text files read line by line, with the line's number in every error."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

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


@dataclass(frozen=True)
class Table:
    """The rows of a file of any of the kinds that are read.

    Attributes:
        path: The file.
        columns: Names of its columns; of JSON lines those of the first row.
        lines: Line of every row, counted from 1; of parquet its number.
        rows: Column -> value.
    """

    path: Path
    columns: tuple[str, ...]
    lines: list[int]
    rows: list[dict[str, Any]]


SUFFIXES = (".jsonl", ".csv", ".tsv", ".parquet")
"""Endings of the files that :func:`read_table` reads."""


def read_table(owner: str, path: Path, quoted: bool | None = None) -> Table:
    """Return the rows of a jsonl, csv, tsv or parquet file with named columns.

    Args:
        owner: Name of the class that reads, for the error.
        path: The file.
        quoted: Whether quotation marks enclose fields of csv and tsv files; None: in csv they do, in tsv they do not.

    Raises:
        DataFileError: If it is empty, not UTF-8, or a row has the wrong form; names the line.
        ImportError: If it is parquet and pyarrow is not installed.
    """
    if path.suffix == ".parquet":
        return _read_parquet(owner, path)
    if path.suffix == ".jsonl":
        return _read_jsonl(owner, path)
    if path.suffix not in SUFFIXES:
        raise DataFileError.of(owner, path, f"must end in one of {', '.join(SUFFIXES)}", "convert it")
    if quoted is None:
        quoted = path.suffix == ".csv"
    if path.suffix == ".tsv" and not quoted:
        read, _ = read_tsv(owner, path, ())
        return Table(path, tuple(read[0].fields), [row.line for row in read], [dict(row.fields) for row in read])
    return _read_csv(owner, path, "\t" if path.suffix == ".tsv" else ",", quoted)


def _read_csv(owner: str, path: Path, delimiter: str, quoted: bool) -> Table:
    lines = read_lines(owner, path)
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    reader = csv.reader((f"{line}\n" for line in lines), delimiter=delimiter, quoting=quoting, strict=True)
    names = next(reader)
    numbers: list[int] = []
    rows: list[dict[str, Any]] = []
    begin = reader.line_num + 1
    try:
        for fields in reader:
            if len(fields) != len(names):
                raise DataFileError.of(
                    owner,
                    f"{path}:{begin}",
                    f"must have {len(names)} columns ({', '.join(names)}), got {len(fields)}",
                    "correct the row, or set quoted",
                )
            numbers.append(begin)
            rows.append(dict(zip(names, fields, strict=True)))
            begin = reader.line_num + 1
    except csv.Error as error:
        raise DataFileError.of(owner, f"{path}:{begin}", f"must be csv, {error}", "correct the quotation") from error
    if not rows:
        raise DataFileError.of(owner, path, "must hold at least one row, got none", "correct the file")
    return Table(path, tuple(names), numbers, rows)


def _read_jsonl(owner: str, path: Path) -> Table:
    numbers: list[int] = []
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(read_lines(owner, path), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataFileError.of(
                owner, f"{path}:{number}", f"every line must be JSON, {error}", "correct the line"
            ) from error
        if not isinstance(row, dict):
            raise DataFileError.of(
                owner,
                f"{path}:{number}",
                f"every line must be a JSON object, got {type(row).__name__}",
                "correct the line",
            )
        numbers.append(number)
        rows.append(row)
    if not rows:
        raise DataFileError.of(owner, path, "must hold at least one row, got none", "correct the file")
    return Table(path, tuple(rows[0]), numbers, rows)


def _read_parquet(owner: str, path: Path) -> Table:
    try:
        import pyarrow as pa
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise ImportError(f"{owner}: '{path}' needs pyarrow; pip install lightning-mtl[nlp].") from error
    try:
        table = parquet.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise DataFileError.of(owner, path, f"must be a parquet file, {error}", "write it anew") from error
    rows = table.to_pylist()
    if not rows:
        raise DataFileError.of(owner, path, "must hold at least one row, got none", "correct the file")
    return Table(path, tuple(table.column_names), list(range(1, len(rows) + 1)), rows)
