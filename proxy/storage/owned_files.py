"""Files that belong to one process, by a lock that goes with it.

What a process that was killed has left can then be told from what others still use.
"""

import fcntl
import os
from pathlib import Path


def created(path: Path) -> int:
    """Make the file, and hold its lock before a process that starts now can see it.

    Raises:
        OSError: it cannot be made.
    """
    unseen = path.with_suffix(".new")
    lock = owned(unseen, os.O_CREAT)
    assert lock is not None, "no other knows its name"
    unseen.rename(path)
    return lock


def owned(path: Path, flags: int = 0) -> int | None:
    """A descriptor that holds the file's lock, or None if another has it, or it has just gone.

    SQLite locks ranges of the file by fcntl, which an flock of the whole does not disturb.

    Raises:
        OSError: it cannot be opened.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | flags, 0o600)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError:  # as on a file system without locks
        os.close(descriptor)
        raise
    return descriptor
