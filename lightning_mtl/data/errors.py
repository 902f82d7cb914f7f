"""Errors about data on disk: each names the path and says what to do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


class DatasetNotFoundError(FileNotFoundError):
    """A data set is absent, or present in part.

    Args:
        owner: Name of the class that looked for it.
        root: Folder that was searched, or None when no folder was given.
        missing: Paths that were looked for and not found.
        remedy: How to get the data set, one or more sentences.

    Example:
        >>> print(DatasetNotFoundError("Rooms", Path("/data/rooms"), [Path("train.txt")], "Download it."))
        Rooms: data not found in '/data/rooms': missing train.txt. Download it.
    """

    def __init__(self, owner: str, root: Path | None, missing: Sequence[Path | str], remedy: str) -> None:
        if root is None:
            message = f"{owner}: root must name the folder of the data set, got None. {remedy}"
        elif not root.is_dir() and not missing:
            message = f"{owner}: data not found: root '{root}' is not a folder. {remedy}"
        else:
            shown = ", ".join(str(path) for path in missing[:5])
            more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
            message = f"{owner}: data not found in '{root}': missing {shown}{more}. {remedy}"
        super().__init__(message)


class DataFileError(ValueError):
    """One file of a data set cannot be used.

    Args:
        owner: Name of the class that read it.
        path: The file.
        problem: What was expected and what was found.
        remedy: What to do about it.

    Example:
        >>> print(DataFileError("Rooms", Path("a.png"), "depth must be finite, got NaN", "export it again"))
        Rooms: 'a.png': depth must be finite, got NaN; export it again.
    """

    def __init__(self, owner: str, path: Path | str, problem: str, remedy: str) -> None:
        super().__init__(f"{owner}: '{path}': {problem}; {remedy}.")
        self.path = Path(path)

    def __reduce__(self) -> tuple[object, ...]:
        # A loader's worker sends its exception to the main process; the constructor there is given the message alone.
        return (_rebuild, (type(self), str(self), self.path))


class EmptySplitError(ValueError):
    """A split of a data set holds no samples."""


def _rebuild(kind: type[DataFileError], message: str, path: Path) -> DataFileError:
    error = kind.__new__(kind)
    ValueError.__init__(error, message)
    error.path = path
    return error
