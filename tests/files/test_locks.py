import errno
import os
import subprocess
import sys
import textwrap
import threading

import pytest
from filelock import FileLock

from kdistill.errors import ConfigError, DataError
from kdistill.files import locked, sole_use


def elsewhere(act):
    """Return what ``act`` gives in another thread."""
    found = []
    thread = threading.Thread(target=lambda: found.append(act()))
    thread.start()
    thread.join()
    return found[0]


def is_free(path):
    with locked(path, wait=False) as is_mine:
        return is_mine


def test_a_lock_is_held_by_one_thread_and_let_go(tmp_path):
    path = tmp_path / "new" / "file"
    with (
        locked(path),
        locked(path) as again,
    ):  # the same thread may enter again, and leaving once does not let go
        assert again
        with locked(path):
            pass
        assert not elsewhere(lambda: is_free(path))
    with pytest.raises(ZeroDivisionError), locked(path):
        raise ZeroDivisionError
    assert elsewhere(lambda: is_free(path))
    assert os.listdir(path.parent) == []  # the lock file is gone


def test_a_folder_is_used_by_one_process_and_a_killed_one_lets_go(tmp_path):
    code = f"""
        import sys, time
        from kdistill.files import sole_use
        with sole_use({str(tmp_path)!r}):
            print("in", flush=True)
            time.sleep(60)
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "in\n"
        with (
            pytest.raises(
                ConfigError,
                match=r"got one that another run is using; wait until it has finished, or choose "
                "another",
            ),
            sole_use(tmp_path),
        ):
            pass
        other.kill()
    with sole_use(tmp_path):
        pass


def test_waiting_threads_enter_one_after_the_other(tmp_path):
    inside, most = [], []

    def work():
        for _ in range(5):
            with sole_use(tmp_path, wait=60):
                inside.append(1)
                most.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 20


def test_a_lock_file_that_is_a_link_is_not_followed(tmp_path):
    (tmp_path / "victim").write_text("mine")
    (tmp_path / ".file.lock").symlink_to(tmp_path / "victim")
    with (
        pytest.raises(
            DataError, match=r"\.file\.lock: expected .*, got a symbolic link; delete it"
        ),
        locked(tmp_path / "file"),
    ):
        pass
    assert (tmp_path / "victim").read_text() == "mine"


def test_a_lock_in_a_place_that_cannot_be_written_is_explained(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(DataError, match="expected a place that can be written"),
        locked(tmp_path / "file" / "x"),
    ):
        pass


@pytest.mark.parametrize(
    "error", [NotImplementedError(), OSError(errno.ENOLCK, "No locks available")]
)
def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch, caplog, error):
    def refuses(*args, **kwargs):
        raise error

    monkeypatch.setattr(FileLock, "acquire", refuses)
    for _ in range(2):
        with locked(tmp_path / "file") as is_mine:
            assert is_mine
    assert [f"{tmp_path}: this file system has no locks" in line for line in caplog.messages] == [
        True
    ]  # once, not twice
