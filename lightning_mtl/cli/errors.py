"""Messages of a refused command line: what is wrong, without what went right."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from jsonargparse import ArgumentError
from lightning.pytorch.cli import LightningArgumentParser

_ALTERNATIVES = (
    "Does not validate against any of the Union subtypes",
    "Subtypes: ",
    "Errors:",
    "- Expected a <class 'NoneType'>",
    "Given value type: ",
)
_LONGEST_VALUE = 120


class ConciseParser(LightningArgumentParser):
    """Lightning's parser, with one short message for a wrong option instead of a page of usage."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the message and end the process with status 2."""
        if not self.exit_on_error or debugging():
            raise ArgumentError(None, message) from ex
        parser = getattr(ex, "subcommand_parser", None) or self
        prog = parser.prog.replace(" [options]", "")
        fail(message, prog, f"`{prog} --help` lists the options.")


def debugging() -> bool:
    """Return whether tracebacks are asked for, by the environment variable that jsonargparse has for it."""
    return os.environ.get("JSONARGPARSE_DEBUG", "").lower() not in ("", "false", "no", "0")


def fail(error: Exception | str, prog: str = "lightning-mtl", remedy: str = "") -> NoReturn:
    """End the process with status 2 and one message, or raise the error when debugging is asked for.

    Args:
        error: What went wrong.
        prog: Name of the program in the message.
        remedy: A last line.
    """
    if isinstance(error, Exception) and debugging():
        raise error
    print(f"{prog}: error: {concise(str(error))}", file=sys.stderr)
    if remedy:
        print(remedy, file=sys.stderr)
    raise SystemExit(2)


def concise(message: str) -> str:
    r"""Leave out of a parser's message the alternatives that were not meant, and dumps of whole sections.

    For a value that may be one of several types the parser reports why it is none of them; the reason that matters is
    the one inside the class that was named.

    Example:
        >>> print(concise("Parser key 'm':\n  Errors:\n    - Option 'a' is not accepted\n    - Expected a "
        ...               "<class 'NoneType'>"))
        Parser key 'm':
            - Option 'a' is not accepted
    """
    in_class = "Problem with given class_path" in message
    kept = []
    for line in message.splitlines():
        text = line.strip()
        value = text.removeprefix("Given value: ")
        dump = value != text and (value.startswith(("{", "Namespace(")) or len(value) > _LONGEST_VALUE)
        repeated = in_class and text.startswith("- Type ") and "expects a function or a callable class" in text
        if text and not dump and not repeated and not text.startswith(_ALTERNATIVES):
            kept.append(line)
    text = "\n".join(kept) or message
    return text.strip().removeprefix("- ")
