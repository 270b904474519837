"""What the tests of artefacts share."""

import resource
from contextlib import contextmanager

import pytest


@pytest.fixture
def disk_with_room_for():
    """A context in which every file is cut at so many bytes: the kernel refuses the rest, as it does on a full disk."""

    @contextmanager
    def limited(nbytes: int):
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limited
