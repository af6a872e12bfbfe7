"""Onefile: what ``python zray.pyz script.py`` does.

``scripts/onefile`` packs zray and cloudpickle into one file that Python can run. It runs a script as ``python script.py`` would,
with zray importable in it and in its workers. If pyzmq can be imported, ``zray.init()`` starts a cluster of this machine as ever,
else the script runs in local mode, which needs nothing.

pyzmq is compiled, and Python can not load compiled modules out of an archive. A file that was built with it unpacks it once into
a directory of the user's own, named after its contents, and only where no other pyzmq is found.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import stat
import sys
import sysconfig
import tempfile
import types
import zipfile

VENDORED = "vendored/"  # in the archive: what must be unpacked
LABEL = VENDORED + "LABEL"  # the digest of that, and the Python it is for

_USAGE = "usage: python zray.pyz SCRIPT [ARGUMENT ...]"


def main() -> None:
    """Run the script that the command line names."""
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        print(_USAGE, file=sys.stderr)
        sys.exit(0 if sys.argv[1:] in (["-h"], ["--help"]) else 2)
    archive = sys.path.pop(0)
    del sys.argv[0]
    sys.path[:0] = [os.path.dirname(os.path.abspath(sys.argv[0])), archive]
    found = [archive]
    if importlib.util.find_spec("zmq") is None:
        unpacked, problem = unpack(archive)
        if problem:
            os.environ["ZRAY_LOCAL_MODE"] = "1"
            print(f"zray: {problem}: this runs in local mode, in one process", file=sys.stderr)
        else:
            sys.path.append(unpacked)
            found.append(unpacked)
    os.environ["PYTHONPATH"] = os.pathsep.join([*found, *filter(None, [os.environ.get("PYTHONPATH")])])  # for the workers
    run(sys.argv[0])


def run(path: str) -> None:
    """Run a file as ``__main__``."""
    place = os.path.abspath(path)  # as Python itself does it: the script may change its directory
    try:
        with open(path, "rb") as file:
            code = compile(file.read(), place, "exec")
    except OSError as error:
        sys.exit(f"zray: can not read {path}: {error.strerror}")
    module = types.ModuleType("__main__")
    module.__file__ = place
    sys.modules["__main__"] = module
    exec(code, module.__dict__)


def label(digest: str) -> str:
    """What tells one set of compiled modules from all others: its digest, and the Python that can load it."""
    return f"{digest}-{sys.implementation.cache_tag}-{sysconfig.get_platform()}"


def unpack(archive: str) -> tuple[str, str]:
    """Unpack what is vendored, if that was not done before.

    Returns:
        The directory, and nothing; or nothing, and what is wrong.
    """
    with zipfile.ZipFile(archive) as file:
        names = [name for name in file.namelist() if name.startswith(VENDORED) and name != LABEL]
        if not names:
            return "", "pyzmq is not installed"
        wanted = file.read(LABEL).decode()
        if wanted != label(wanted.partition("-")[0]):
            return "", f"pyzmq is not installed, and the one in {archive} is for another Python ({wanted.partition('-')[2]})"
        home = os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "zray")
        place = os.path.join(home, wanted)
        try:
            os.makedirs(home, mode=0o700, exist_ok=True)
            if not os.path.exists(place):
                _unpack_into(place, file, names)
            problem = _not_private(home) or _not_private(place)
        except OSError as error:
            problem = f"it can not be unpacked into {place} ({error.strerror}); XDG_CACHE_HOME can name another directory"
    return ("", f"pyzmq is not installed, and {problem}") if problem else (place, "")


def _unpack_into(place: str, file: zipfile.ZipFile, names: list[str]) -> None:
    """All of it or nothing: whoever comes at the same time finds the directory whole."""
    made = tempfile.mkdtemp(dir=os.path.dirname(place))  # mode 0700
    try:
        for name in names:
            path = os.path.join(made, name.removeprefix(VENDORED))
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "wb") as target:
                target.write(file.read(name))
        os.rename(made, place)
    except FileExistsError:
        pass
    except OSError:
        if not os.path.isdir(place):  # else another one was faster
            raise
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _not_private(path: str) -> str:
    """Why code must not be loaded from a directory, if others can change what is in it."""
    status = os.lstat(path)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o022:
        return f"{path} belongs to others, or can be written by them"
    return ""
