"""A filter of system calls for a session: one process, one thread, no sockets, no way to ask the kernel for more.

A list of what is refused, not of what is allowed, so that another C library does not break it; numbers above those
known here are answered "no such system call", to which C libraries fall back. Layouts: linux/seccomp.h, linux/filter.h,
linux/audit.h; numbers: arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h.
"""

from __future__ import annotations

import ctypes
import errno
import platform
import struct

LOAD, JUMP_EQUAL, JUMP_AT_LEAST, RETURN = 0x20, 0x15, 0x35, 0x06  # classic BPF: ld [k]; jeq; jge; ret
ALLOW, KILL, REFUSE = 0x7FFF0000, 0x80000000, 0x00050000  # the low 16 bits of REFUSE are the error number
NUMBER_AT, ARCHITECTURE_AT = 0, 4  # offsets in struct seccomp_data
PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 22, 2
NEWEST = 451  # cachestat; calls from 424 on have one number on every architecture

ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

# name, its number on x86_64 and on aarch64; a dash where an architecture does not have the call
REFUSED = """
clone 56 220; fork 57 -; vfork 58 -; execve 59 221; execveat 322 281
socket 41 198; socketpair 53 199; connect 42 203; bind 49 200; listen 50 201
ptrace 101 117; process_vm_readv 310 270; process_vm_writev 311 271; kcmp 312 272
pidfd_send_signal 424 424; pidfd_open 434 434; pidfd_getfd 438 438; process_madvise 440 440; process_mrelease 448 448
mount 165 40; umount2 166 39; pivot_root 155 41; chroot 161 51; mount_setattr 442 442
open_tree 428 428; move_mount 429 429; fsopen 430 430; fsconfig 431 431; fsmount 432 432; fspick 433 433
unshare 272 97; setns 308 268; mknodat 259 33; mknod 133 -
add_key 248 217; request_key 249 218; keyctl 250 219
bpf 321 280; userfaultfd 323 282; perf_event_open 298 241; memfd_create 319 279; memfd_secret 447 447
io_uring_setup 425 425; io_uring_enter 426 426; io_uring_register 427 427; io_setup 206 0
shmget 29 194; shmat 30 196; semget 64 190; msgget 68 186; mq_open 240 180
inotify_init 253 -; inotify_init1 294 26; fanotify_init 300 262; quotactl 179 60; acct 163 89
name_to_handle_at 303 264; open_by_handle_at 304 265; syslog 103 116
init_module 175 105; finit_module 313 273; delete_module 176 106; kexec_load 246 104
reboot 169 142; swapon 167 224; swapoff 168 225; personality 135 92
settimeofday 164 170; clock_settime 227 112; adjtimex 159 171; sethostname 170 161; setdomainname 171 162
mbind 237 235; set_mempolicy 238 237; migrate_pages 256 238; move_pages 279 239
setuid 105 146; setgid 106 144; setresuid 117 147; setgroups 116 159
"""
CLONE3 = 435  # answered "no such call": the C library then tries clone, which is refused


def refused(machine: str) -> dict[str, int]:
    """Numbers of the refused calls by name, on one of ARCHITECTURES."""
    column = 1 if machine == "x86_64" else 2
    calls = [entry.split() for entry in REFUSED.replace("\n", ";").split(";") if entry.strip()]
    return {words[0]: int(words[column]) for words in calls if words[column] != "-"}


def program(machine: str) -> bytes | None:
    """The filter as an array of struct sock_filter, or None for an architecture that is not known here."""
    if machine not in ARCHITECTURES:
        return None
    numbers = sorted(refused(machine).values())
    lines: list[tuple[int, int, int, int]] = [
        (LOAD, 0, 0, ARCHITECTURE_AT),
        (JUMP_EQUAL, 1, 0, ARCHITECTURES[machine]),
        (RETURN, 0, 0, KILL),
        (LOAD, 0, 0, NUMBER_AT),
        (JUMP_AT_LEAST, 0, 1, NEWEST + 1),  # also the x32 calls of x86_64, which start at 2**30
        (RETURN, 0, 0, REFUSE | errno.ENOSYS),
        (JUMP_EQUAL, 0, 1, CLONE3),
        (RETURN, 0, 0, REFUSE | errno.ENOSYS),
    ]
    for number in numbers:
        lines += [(JUMP_EQUAL, 0, 1, number), (RETURN, 0, 0, REFUSE | errno.EPERM)]
    lines.append((RETURN, 0, 0, ALLOW))
    return b"".join(struct.pack("=HBBI", *line) for line in lines)


def install(libc: ctypes.CDLL) -> None:
    """Put the filter on this process for good; nothing on an unknown architecture. Needs no_new_privs."""
    code = program(platform.machine())
    if code is None:
        return
    instructions = ctypes.create_string_buffer(code, len(code))
    header = ctypes.create_string_buffer(struct.pack("@HP", len(code) // 8, ctypes.addressof(instructions)))
    if libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, header, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_SECCOMP)")
