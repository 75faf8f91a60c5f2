"""Makes a Python that is as far from Linux as one on Linux can be, to try what runs on a Mac.

`make_python()` is an environment whose interpreter imports this module when it starts, with `-I`
too. Then there is no `/proc`, no `prctl`, no epoll, none of the functions that only Linux has, and
no address of loopback but one; `sys.platform` says `darwin`, so `multiprocessing` spawns. What this
cannot show is what only a Mac's own kernel does.
"""

import builtins
import ctypes
import importlib
import os
import select
import shutil
import signal
import socket
import sys
import sysconfig
import venv
from pathlib import Path
from typing import Any

LINUX_ONLY = {
    os: (
        *("copy_file_range", "eventfd", "memfd_create", "pidfd_open", "posix_fadvise"),
        *("sched_getaffinity", "sched_setaffinity", "setresuid", "splice", "pipe2"),
    ),
    select: ("epoll",),
    signal: ("pidfd_send_signal", "sigtimedwait", "sigwaitinfo"),
    socket: ("SO_BINDTODEVICE", "TCP_QUICKACK", "TCP_USER_TIMEOUT", "SOCK_NONBLOCK"),
}


def make_python(folder: Path) -> Path:
    """A Python with all packages of the running one, for which this is no Linux."""
    venv.create(folder, symlinks=True, with_pip=False)
    [packages] = folder.glob("lib/python*/site-packages")
    [own] = (path for path in sys.path if path.endswith("site-packages"))
    shutil.copy(__file__, packages / "not_linux.py")
    (packages / "a_packages.pth").write_text(f"import site; site.addsitedir({own!r})\n")
    (packages / "b_not_linux.pth").write_text("import not_linux; not_linux.leave_linux()\n")
    return folder / "bin" / "python"


def leave_linux() -> None:
    """Take from this process what only Linux has.

    What Python itself, or a package, has in another form on a Mac is first had in Linux's.
    """
    sysconfig.get_config_vars()
    for module_name in ("urllib.request", "ctypes.util", "psutil"):
        importlib.import_module(module_name)
    for module, names in LINUX_ONLY.items():
        for name in names:
            vars(module).pop(name, None)
    builtins.open = _without_proc(open)
    for name in ("open", "listdir", "scandir", "stat", "lstat", "readlink"):
        setattr(os, name, _without_proc(getattr(os, name)))
    ctypes.CDLL = _Library  # type: ignore[misc]
    socket.socket.bind = _bind  # type: ignore[assignment, method-assign]
    sys.platform = "darwin"


def _without_proc(opener: Any) -> Any:
    def open_it(path: Any = ".", *arguments: Any, **named: Any) -> Any:
        if isinstance(path, str | bytes | os.PathLike) and _is_of_linux(os.fsdecode(path)):
            raise FileNotFoundError(2, "No such file or directory", path)
        return opener(path, *arguments, **named)

    return open_it


def _is_of_linux(path: str) -> bool:
    return path.startswith(("/proc", "/sys/"))


class _Library(ctypes.CDLL):
    def __getattr__(self, name: str) -> Any:
        if name in ("prctl", "epoll_create1", "inotify_init1"):
            raise AttributeError(f"symbol not found: {name}")
        return super().__getattr__(name)


_really_bind = socket.socket.bind


def _bind(bound: socket.socket, address: Any) -> None:
    host = str(address[0]) if isinstance(address, tuple) else ""
    if host.startswith("127.") and host != "127.0.0.1":
        raise OSError(49, "Can't assign requested address")
    _really_bind(bound, address)
