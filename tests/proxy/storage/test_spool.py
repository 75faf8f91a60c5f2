"""Lines that wait: in files that outlive a process, in memory while no file can be written."""

import os
import subprocess
import sys
from pathlib import Path

from proxy.storage import spool as spool_module
from proxy.storage.spool import READ_BYTES, Spool

KILLED = """
import os, pathlib, signal, sys
from proxy.storage.spool import Spool
spool = Spool(pathlib.Path(sys.argv[1]), "rows")
for number in range(3):
    spool.add(b"%d\\n" % number)
os.kill(os.getpid(), signal.SIGKILL)
"""
FULL = """
import pathlib, resource, sys
from proxy.storage import spool as module
module.PAUSE_SECONDS = 0.0
spool = module.Spool(pathlib.Path(sys.argv[1]), "rows")
resource.setrlimit(resource.RLIMIT_FSIZE, (10, resource.RLIM_INFINITY))
for number in range(5):
    spool.add(b"%03d\\n" % number)
assert (spool.waiting, spool.lost) == (5, 0)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
spool.add(b"005\\n")
while lines := spool.next(2):
    print(b"".join(lines).decode(), end="")
    spool.done()
"""


def written(spool: Spool, count: int = 100) -> list[bytes]:
    """All that waits, taken out."""
    found: list[bytes] = []
    while lines := spool.next(count):
        found += lines
        spool.done()
    return found


def test_lines_are_given_in_order_and_stay_until_they_are_written(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "new", "rows")
    for number in range(5):
        spool.add(b"%d\n" % number)
    assert spool.next(2) == spool.next(2) == [b"0\n", b"1\n"]
    spool.done()
    spool.add(b"5\n")
    assert spool.waiting == 4
    assert written(spool, 3) == [b"2\n", b"3\n", b"4\n", b"5\n"]
    assert spool.waiting == 0
    spool.add(b"6\n")
    assert written(spool) == [b"6\n"]
    assert list((tmp_path / "new").iterdir()) == []


def test_while_nothing_is_written_there_are_two_files_at_most(tmp_path: Path) -> None:
    spool = Spool(tmp_path, "rows")
    for number in range(10):
        spool.add(b"%d\n" % number)
        spool.next(100)
    assert len(list(tmp_path.iterdir())) == 2
    assert len(written(spool)) == 10


def test_lines_longer_than_what_is_read_at_a_time_come_whole(tmp_path: Path) -> None:
    spool = Spool(tmp_path, "rows")
    lines = [b"%d" % number + b"x" * 999 + b"\n" for number in range(2 * READ_BYTES // 1000)]
    for line in lines:
        spool.add(line)
    assert written(spool, 10_000) == lines


def test_a_process_that_was_killed_leaves_its_lines_to_the_next(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False, timeout=100)
    spool, other = Spool(tmp_path, "rows"), Spool(tmp_path, "rows")
    spool.take_over()
    other.take_over()
    assert (spool.waiting, other.waiting) == (3, 0)
    assert written(spool) == [b"0\n", b"1\n", b"2\n"]
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_written_is_left_to_the_next(tmp_path: Path) -> None:
    spool = Spool(tmp_path, "rows")
    spool.add(b"0\n")
    spool.add(b"1\n")
    spool.next(1)
    spool.done()
    spool.close()
    following = Spool(tmp_path, "rows")
    following.take_over()
    assert b"1\n" in written(following)


def test_a_full_disk_loses_nothing_and_leaves_no_half_line(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True, timeout=100
    )
    assert ended.stdout.split() == ["000", "001", "002", "003", "004", "005"], ended.stderr
    assert "waits in memory" in ended.stderr


def test_memory_holds_so_many_and_the_oldest_give_way(tmp_path: Path) -> None:
    folder = tmp_path / "file"
    folder.write_text("")  # no folder can be made there
    spool = Spool(folder, "rows")
    for number in range(spool_module.MAX_IN_MEMORY + 3):
        spool.add(b"%d\n" % number)
    assert (spool.waiting, spool.lost) == (spool_module.MAX_IN_MEMORY, 3)
    assert written(spool)[0] == b"3\n"


def test_what_went_into_a_file_while_it_was_being_written_elsewhere_is_given_again(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "folder"
    folder.write_text("")
    spool = Spool(folder, "rows")
    spool.add(b"0\n")
    assert spool.next(10) == [b"0\n"]
    folder.unlink()
    spool._retry_at = 0.0
    spool.add(b"1\n")
    spool.done()
    assert spool.waiting == 2
    assert written(spool) == [b"0\n", b"1\n"]
    assert os.listdir(folder) == []
