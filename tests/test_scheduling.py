"""Tests that start processes share a worker."""

from __future__ import annotations

import pytest

from tests.scheduling import ProcessesTogether


@pytest.mark.parametrize(
    ("test", "together"),
    [
        ("tests/test_processes.py::test_one[a]", True),
        ("tests/callbacks/test_fpf_processes.py::test_one[a/processes]", True),
        ("tests/metrics/test_contract.py::test_two_processes_give_the_value", True),
        ("tests/metrics/test_contract.py::test_one[processes]", False),
        ("tests/processes/test_one.py::test_one", False),
    ],
)
def test_tests_that_start_processes_are_known_by_the_name_of_file_or_test(test: str, together: bool) -> None:
    scheduling = ProcessesTogether.__new__(ProcessesTogether)
    assert scheduling._split_scope(test) == ("processes" if together else test)
