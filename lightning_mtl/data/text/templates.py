"""Task instructions in front of texts, and the files that hold them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lightning_mtl.data.errors import DataFileError, DatasetNotFoundError

InstructionMode = Literal["none", "task_name", "prompt", "full"]

_REMEDY = "correct the template file"


@dataclass(frozen=True)
class InstructionExample:
    """A worked example of a task.

    Attributes:
        input: The text.
        output: What is to be written.
        explanation: Why; may be empty.
    """

    input: str
    output: str
    explanation: str = ""


@dataclass(frozen=True)
class InstructionTemplate:
    """What a text-to-text model is told about a task, in front of every text.

    Args:
        definition: What the task is.
        examples: Worked examples.
        prompt: The task in one sentence, for the mode ``"prompt"``.
        max_examples: Most examples that are shown; None shows all.
        include_explanations: Whether examples are shown with their explanations.

    Raises:
        ValueError: If ``max_examples`` is negative.

    Note:
        The authors' layout is known from a prompt with one example; several are joined by one space here. Without an
        example the part about them is left out, and so is an explanation that is empty.

    Example:
        >>> template = InstructionTemplate("Reverse the text.", [InstructionExample("ab", "ba", "b comes last")])
        >>> print(template.render("cd"))
        Instruction: Definition: Reverse the text., Positive Examples: [[input: ab, output: ba, explanation: b comes \
last] ]; Instance: input: cd, output: ?

    References:
        Parmar, Mishra, Purohit, Luo, Murad, Baral. *In-BoXBART: Get Instructions into Biomedical Multi-Task Learning*.
        Findings of NAACL 2022. https://arxiv.org/abs/2204.07600. Authors' code:
        https://github.com/Mihir3009/In-BoXBART, MIT.
    """

    definition: str
    examples: Sequence[InstructionExample] = ()
    prompt: str | None = None
    max_examples: int | None = None
    include_explanations: bool = True

    def __post_init__(self) -> None:
        if self.max_examples is not None and self.max_examples < 0:
            raise ValueError(f"InstructionTemplate: max_examples must not be negative, got {self.max_examples}.")

    def frame(self, mode: InstructionMode = "full", task: str = "") -> tuple[str, str]:
        """Return what stands before a text and what stands after it.

        Args:
            mode: ``"full"`` gives definition and examples, ``"prompt"`` the short prompt, ``"task_name"`` the name of
                the task, ``"none"`` nothing at all.
            task: Name of the task.

        Raises:
            ValueError: If the mode is unknown, or the template has no prompt.
        """
        if mode == "none":
            return "", ""
        if mode == "task_name":
            told = task
        elif mode == "prompt":
            if self.prompt is None:
                raise ValueError(
                    f"InstructionTemplate: mode='prompt' needs a prompt, and the template of task {task!r} has none; "
                    "give it one, or choose another mode."
                )
            told = self.prompt
        elif mode == "full":
            told = f"Definition: {self.definition}" + self._shown()
        else:
            raise ValueError(
                f"InstructionTemplate: mode must be 'none', 'task_name', 'prompt' or 'full', got {mode!r}."
            )
        return f"Instruction: {told}; Instance: input: ", ", output: ?"

    def _shown(self) -> str:
        shown = list(self.examples)[: self.max_examples]
        if not shown:
            return ""
        return f", Positive Examples: [{' '.join(self._example(example) for example in shown)} ]"

    def _example(self, example: InstructionExample) -> str:
        explained = self.include_explanations and example.explanation
        why = f", explanation: {example.explanation}" if explained else ""
        return f"[input: {example.input}, output: {example.output}{why}]"

    def render(self, text: str, mode: InstructionMode = "full", task: str = "") -> str:
        """Return what the model reads for this text; see :meth:`frame`."""
        before, after = self.frame(mode, task)
        return before + text + after


def read_templates(
    path: str | os.PathLike[str],
    tasks: Iterable[str],
    max_examples: int | None = None,
    include_explanations: bool = True,
    owner: str = "read_templates",
) -> dict[str, InstructionTemplate]:
    """Return the templates of tasks from a JSON file.

    The file maps every task to an object with ``"Definition:"`` (``"Definition"`` will do), ``"Examples"``, a list of
    objects with ``input``, ``output`` and optional ``explanation``, and optional ``"Prompt"``.

    Args:
        path: The file.
        tasks: Tasks that must be in it; it may hold others.
        max_examples: See :class:`InstructionTemplate`.
        include_explanations: See :class:`InstructionTemplate`.
        owner: Name of the class that asks, for errors.

    Raises:
        DatasetNotFoundError: If there is no such file.
        DataFileError: If it is no such file; names the task and the key.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise DatasetNotFoundError(f"{owner}: templates: there is no file '{path}'; give a JSON file of instructions.")
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise DataFileError.of(owner, path, f"must be JSON, {error}", _REMEDY) from error
    if not isinstance(content, Mapping):
        raise DataFileError.of(owner, path, f"must map tasks to templates, got {_kind(content)}", _REMEDY)
    if missing := [task for task in tasks if task not in content]:
        raise DataFileError.of(
            owner, path, f"must hold the tasks {missing}, got {sorted(content)}", "add them, or leave these tasks out"
        )
    return {
        task: InstructionTemplate(
            definition=_text(owner, path, task, content[task], "Definition:", "Definition"),
            examples=_examples(owner, path, task, content[task]),
            prompt=_text(owner, path, task, content[task], "Prompt") if "Prompt" in content[task] else None,
            max_examples=max_examples,
            include_explanations=include_explanations,
        )
        for task in tasks
    }


def _examples(owner: str, path: Path, task: str, entry: Mapping[str, Any]) -> tuple[InstructionExample, ...]:
    found = entry.get("Examples", [])
    if not isinstance(found, list):
        raise DataFileError.of(owner, path, f"task {task!r}: 'Examples' must be a list, got {_kind(found)}", _REMEDY)
    return tuple(
        _example_of(owner, path, f"{task}, example {number}", example) for number, example in enumerate(found, 1)
    )


def _example_of(owner: str, path: Path, place: str, entry: Any) -> InstructionExample:
    explained = isinstance(entry, Mapping) and "explanation" in entry
    return InstructionExample(
        input=_text(owner, path, place, entry, "input"),
        output=_text(owner, path, place, entry, "output"),
        explanation=_text(owner, path, place, entry, "explanation") if explained else "",
    )


def _text(owner: str, path: Path, task: str, entry: Any, *keys: str) -> str:
    if not isinstance(entry, Mapping):
        raise DataFileError.of(owner, path, f"task {task!r}: must be an object, got {_kind(entry)}", _REMEDY)
    for key in keys:
        if key in entry:
            if not isinstance(entry[key], str):
                problem = f"task {task!r}: {key!r} must be a text, got {_kind(entry[key])}"
                raise DataFileError.of(owner, path, problem, _REMEDY)
            return str(entry[key])
    raise DataFileError.of(owner, path, f"task {task!r}: must have {keys[0]!r}, got {sorted(entry)}", _REMEDY)


def _kind(value: Any) -> str:
    return type(value).__name__
