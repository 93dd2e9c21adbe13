"""The walls of one session from inside: its own process table and file system, limits, no rights, few system calls.

Runs in the first process's fork, before any code of a model. Everything here fails closed: a wall that can't be built
raises OSError and the session never starts. Numbers are those of the Linux headers (linux/sched.h, linux/mount.h,
linux/capability.h, linux/prctl.h).
"""

from __future__ import annotations

import ctypes
import os
import resource

from herd.tools.inside import seccomp

CLONE_NEWNS, CLONE_NEWIPC, CLONE_NEWPID = 0x00020000, 0x08000000, 0x20000000
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REC, MS_PRIVATE = 2, 4, 8, 1 << 14, 1 << 18
PR_SET_DUMPABLE, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT = 4, 36, 38, 47
PR_CAP_AMBIENT_CLEAR_ALL = 4
CAPABILITY_VERSION_3 = 0x20080522
SESSION_CPU_SECONDS = 600  # over a whole conversation; each call has a wall clock outside
OPEN_FILES = 64

_libc = ctypes.CDLL(None, use_errno=True)


def check(result: int, what: str) -> None:
    """Raise OSError where a call into the C library failed."""
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def adopt_orphans() -> None:
    """Make this process the parent of grandchildren whose parent has ended, so that it can wait for them."""
    check(_libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "prctl(PR_SET_CHILD_SUBREAPER)")


def own_namespaces(disk_bytes: int) -> None:
    """Own mounts, with an empty /tmp of `disk_bytes`, for this process; its next child is process 1 of a new table."""
    check(_libc.unshare(CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWPID), "unshare")
    check(_libc.mount(None, b"/", None, MS_REC | MS_PRIVATE, None), "mount --make-rprivate /")
    options = f"size={disk_bytes},mode=0700,nr_inodes=4096".encode()
    check(_libc.mount(b"tmpfs", b"/tmp", b"tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, options), "mount /tmp")


def limit(memory_bytes: int, disk_bytes: int) -> None:
    """Resource limits of this process against accidents: address space and the size of a file."""
    for kind, most in ((resource.RLIMIT_AS, memory_bytes), (resource.RLIMIT_FSIZE, disk_bytes)):
        resource.setrlimit(kind, (most, most))


def limit_the_rest() -> None:
    """Resource limits against attacks: one process, few files, processor time over the whole conversation.

    They are hard: nothing raises them again. The kernel does not hold processes of user 0 of the host to RLIMIT_NPROC;
    there the filter of system calls is what stops them.
    """
    limits = {"CPU": SESSION_CPU_SECONDS, "NOFILE": OPEN_FILES, "CORE": 0, "NPROC": 0, "MEMLOCK": 0, "MSGQUEUE": 0}
    for name, most in limits.items():
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (most, most))


def drop_rights() -> None:
    """Give up every capability, new privileges and the system calls that data analysis has no use for."""
    check(_libc.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0), "prctl(PR_CAP_AMBIENT)")
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
    check(_libc.capset(header, (ctypes.c_uint32 * 6)()), "capset")
    check(_libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl(PR_SET_NO_NEW_PRIVS)")
    check(_libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0), "prctl(PR_SET_DUMPABLE)")
    seccomp.install(_libc)
