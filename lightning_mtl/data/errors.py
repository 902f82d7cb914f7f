"""Errors about data on disk: each names the path and says what to do.

They are made from a single message, because PyTorch builds the exception of a loader's worker anew from its text.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


class DatasetNotFoundError(FileNotFoundError):
    """A data set is absent, or present in part."""

    @classmethod
    def of(cls, owner: str, root: Path | None, missing: Sequence[Path | str], remedy: str) -> DatasetNotFoundError:
        """Return the error.

        Args:
            owner: Name of the class that looked for it.
            root: Folder that was searched, or None when no folder was given.
            missing: Paths that were looked for and not found; none when the folder itself is not there.
            remedy: How to get the data set, one or more sentences.

        Example:
            >>> print(DatasetNotFoundError.of("Rooms", Path("/data/rooms"), ["train.txt"], "Download it."))
            Rooms: data not found in '/data/rooms': missing train.txt. Download it.
        """
        if root is None:
            return cls(f"{owner}: root must name the folder of the data set, got None. {remedy}")
        if not missing:
            return cls(f"{owner}: data not found: root '{root}' is not a folder. {remedy}")
        shown = ", ".join(str(path) for path in missing[:5])
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        return cls(f"{owner}: data not found in '{root}': missing {shown}{more}. {remedy}")


class DataFileError(ValueError):
    """One file of a data set cannot be used."""

    @classmethod
    def of(cls, owner: str, path: Path | str, problem: str, remedy: str) -> DataFileError:
        """Return the error.

        Args:
            owner: Name of the class that read it.
            path: The file.
            problem: What was expected and what was found.
            remedy: What to do about it.

        Example:
            >>> print(DataFileError.of("Rooms", "a.png", "depth must be finite, got NaN", "export it again"))
            Rooms: 'a.png': depth must be finite, got NaN; export it again.
        """
        return cls(f"{owner}: '{path}': {problem}; {remedy}.")


class EmptySplitError(ValueError):
    """A split of a data set holds no samples."""
