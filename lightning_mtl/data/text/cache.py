"""Tokens of a file: in memory, or in an Arrow file that is mapped into memory."""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.utilities import rank_zero_warn
from numpy.typing import DTypeLike, NDArray

from lightning_mtl.data.text.records import TextRecords

FORMAT = 1
"""Number of the layout of the cache's files; a change makes all of them anew."""

CACHE_VARIABLE = "LIGHTNING_MTL_CACHE"
"""Environment variable with the folder of the cache."""


def cache_folder(folder: str | os.PathLike[str] | None) -> Path:
    """Return the folder of the cache.

    Args:
        folder: The folder; None takes that of the environment variable ``LIGHTNING_MTL_CACHE``, else ``lightning_mtl``
            in ``XDG_CACHE_HOME``, which is ``~/.cache`` where it is not set.
    """
    if folder is not None:
        return Path(folder).expanduser()
    if os.environ.get(CACHE_VARIABLE):
        return Path(os.environ[CACHE_VARIABLE]).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lightning_mtl"


@dataclass(frozen=True)
class Ragged:
    """Rows of different length in one array.

    Attributes:
        values: All rows one after the other.
        starts: Where each begins, and where the last ends ``(N + 1,)``.

    Example:
        >>> rows = Ragged.of([[5, 6], [], [7]])
        >>> len(rows), rows[0].tolist(), rows.lengths.tolist()
        (3, [5, 6], [2, 0, 1])
    """

    values: NDArray[Any]
    starts: NDArray[np.int64]

    @classmethod
    def of(cls, rows: Iterable[Sequence[float]], dtype: DTypeLike = np.int32) -> Ragged:
        """Pack rows of numbers."""
        lists = [np.asarray(row, dtype=dtype) for row in rows]
        starts = np.zeros(len(lists) + 1, dtype=np.int64)
        np.cumsum([len(row) for row in lists], out=starts[1:])
        return cls(np.concatenate(lists) if lists else np.zeros(0, dtype=dtype), starts)

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.starts) - 1

    def __getitem__(self, row: int) -> NDArray[Any]:
        """Return a row."""
        return self.values[self.starts[row] : self.starts[row + 1]]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Length of every row."""
        return np.diff(self.starts)


Column = Ragged | NDArray[Any]


class Tokens:
    """Columns of equal length: the tokens and targets of a file's rows.

    Args:
        columns: Name -> rows of tokens, or one value a row.
        path: The Arrow file that they are mapped from, if so; a copy in another process maps it again.
    """

    def __init__(self, columns: Mapping[str, Column], path: Path | None = None) -> None:
        self.columns = dict(columns)
        self.path = path

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(next(iter(self.columns.values())))

    def __getitem__(self, name: str) -> Column:
        """Return a column."""
        return self.columns[name]

    def __contains__(self, name: str) -> bool:
        """Return whether there is such a column."""
        return name in self.columns

    @classmethod
    def joined(cls, parts: Sequence[Tokens]) -> Tokens:
        """Return the rows of several files one after the other; copies them where there is more than one file."""
        if len(parts) == 1:
            return parts[0]
        columns: dict[str, Column] = {}
        for name in parts[0].columns:
            pieces = [part.columns[name] for part in parts]
            ragged = [piece for piece in pieces if isinstance(piece, Ragged)]
            if ragged:
                starts = np.concatenate([[0], np.cumsum(np.concatenate([piece.lengths for piece in ragged]))])
                values = [piece.values[piece.starts[0] : piece.starts[-1]] for piece in ragged]
                columns[name] = Ragged(np.concatenate(values), starts)
            else:
                columns[name] = np.concatenate([piece for piece in pieces if not isinstance(piece, Ragged)])
        return cls(columns)

    def __reduce__(self) -> Any:
        """Send the path, not the tokens, to a process that is not forked."""
        return (read_tokens, (self.path,)) if self.path is not None else (Tokens, (self.columns,))


def _arrow() -> Any:
    try:
        import pyarrow
    except ImportError as error:
        raise ImportError(
            "The cache of tokens needs pyarrow; pip install lightning-mtl[nlp], or set cache=False."
        ) from error
    return pyarrow


def write_tokens(path: Path, tokens: Tokens) -> None:
    """Write columns to an Arrow file; it appears under its name when it is complete."""
    pa = _arrow()

    arrays = {
        name: pa.LargeListArray.from_arrays(pa.array(column.starts), pa.array(column.values))
        if isinstance(column, Ragged)
        else pa.array(column)
        for name, column in tokens.columns.items()
    }
    batch = pa.RecordBatch.from_pydict(arrays)
    path.parent.mkdir(parents=True, exist_ok=True)
    building = path.parent / f".{path.name}.{uuid.uuid4().hex}"
    try:
        with pa.OSFile(str(building), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
            writer.write_batch(batch)
        os.replace(building, path)
    finally:
        building.unlink(missing_ok=True)


def read_tokens(path: Path) -> Tokens:
    """Map an Arrow file of :func:`write_tokens` into memory.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is no such file.
    """
    pa = _arrow()

    with pa.memory_map(str(path)) as source:
        batch = pa.ipc.open_file(source).get_batch(0)
    columns: dict[str, Column] = {}
    for name, array in zip(batch.schema.names, batch.columns, strict=True):
        if pa.types.is_large_list(array.type):
            columns[name] = Ragged(array.values.to_numpy(), array.offsets.to_numpy())
        else:
            columns[name] = array.to_numpy()
    return Tokens(columns, path)


def kept_tokens(owner: str, path: Path, make: Callable[[], Tokens]) -> Tokens:
    """Return the tokens in a file of the cache, which is made where it is absent or cannot be read.

    Args:
        owner: Name of the class that asks, for the warning.
        path: The file.
        make: Returns the tokens.
    """
    if path.is_file():
        try:
            return read_tokens(path)
        except (OSError, ValueError) as error:
            rank_zero_warn(f"{owner}: '{path}' cannot be read and is made anew: {error}")
    write_tokens(path, make())
    return read_tokens(path)


def records_key(records: TextRecords, settings: Mapping[str, Any]) -> str:
    """Return a hash of everything that the tokens of these rows follow from.

    Args:
        records: The rows; the name of their file does not count.
        settings: Everything else that decides, as plain data.
    """
    digest = hashlib.sha256(json.dumps([FORMAT, settings], sort_keys=True, default=str).encode())
    for rows in (records.texts, records.choices, records.targets):
        digest.update(json.dumps(rows, default=str, ensure_ascii=True).encode())
        digest.update(b"\0")
    return digest.hexdigest()[:40]
