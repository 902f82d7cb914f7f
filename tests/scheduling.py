"""Which tests share a worker."""

from __future__ import annotations

from xdist.scheduler import LoadGroupScheduling


class ProcessesTogether(LoadGroupScheduling):
    """Sends all tests that start processes to one worker, one after the other.

    Their modules start the processes once, in a fixture; on two workers they would be started twice, and more of them
    would run at a time than there are cores. They are known by their names, with "processes" as a word in the file's or
    the test's, because xdist 3.8 loses the groups of its marks with pytest 9.2.
    """

    def _split_scope(self, nodeid: str) -> str:
        file, _, test = nodeid.partition("::")
        name = test.partition("[")[0]
        return "processes" if "processes" in (*file.rpartition("/")[2][:-3].split("_"), *name.split("_")) else nodeid
