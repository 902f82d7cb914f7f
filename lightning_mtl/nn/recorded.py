"""Components that remember how they were built, so that a checkpoint can build them again."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any


class NotRecordedError(TypeError):
    """A component, or one of its arguments, cannot be written down as plain data."""


class Recorded:
    """Mixin that keeps the arguments of the constructor call.

    A class that inherits from it can be turned by :func:`describe` into the ``class_path`` / ``init_args`` mapping that
    recipes use. The outermost call counts: a subclass's arguments, not those it hands to its base.
    """

    _recorded_arguments: dict[str, Any]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__init__" in cls.__dict__:
            cls.__init__ = _recording(cls.__dict__["__init__"])  # type: ignore[method-assign]


def _recording(init: Callable[..., None]) -> Callable[..., None]:
    signature = inspect.signature(init)

    @functools.wraps(init)
    def wrapper(self: Recorded, *args: Any, **kwargs: Any) -> None:
        if "_recorded_arguments" not in self.__dict__:
            arguments = signature.bind(self, *args, **kwargs).arguments
            arguments.pop(next(iter(arguments)))  # self
            for parameter in signature.parameters.values():
                if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                    arguments.update(arguments.pop(parameter.name, {}))
            object.__setattr__(self, "_recorded_arguments", dict(arguments))
        init(self, *args, **kwargs)

    return wrapper


def _path(thing: Any) -> str:
    path = f"{thing.__module__}.{thing.__qualname__}"
    if "<" in path:
        raise NotRecordedError(f"{path} cannot be imported by name; define it at the top level of a module.")
    return path


def describe(value: Any) -> Any:
    """Turn a component into plain data from which a recipe or a checkpoint can build it again.

    Args:
        value: A :class:`Recorded` object, a class, a :class:`functools.partial` of a class, a container of these, or
            plain data.

    Returns:
        Nested dictionaries, lists, strings and numbers; ``{"class_path": ..., "init_args": ...}`` for objects.

    Raises:
        NotRecordedError: If some part is none of these, with its type in the message.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): describe(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [describe(item) for item in value]
    if isinstance(value, Recorded):
        return {"class_path": _path(type(value)), "init_args": describe(value._recorded_arguments)}
    if isinstance(value, functools.partial) and not value.args:
        return {"class_path": _path(value.func), "init_args": describe(value.keywords)}
    if isinstance(value, type):
        return {"class_path": _path(value)}
    raise NotRecordedError(f"an object of type {type(value).__name__} cannot be written down as plain data.")
