"""Domains: which are listed as harmful, and which page belongs to which (paper 3.1.1: whole domains go).

A list is kept as sorted 64-bit hashes, 8 bytes an entry: the 4.56 million domains inside the package datatrove take
36 MB, and workers share them through a memory-mapped file. With that many entries a page is blocked by chance once
in 10^11.
"""

from __future__ import annotations

import ipaddress
import re
import socket
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray

from herd.console import HerdError
from herd.data.listed_files import Listed, open_listed
from herd.data.words import Hashes, stretch_hashes

MAX_HOST = 253  # RFC 1035
MAX_ADDRESS = 2_000  # of an address, the bytes that are compared
MAX_LINE = 4_000
_CHUNK = 4_000_000  # bytes of a list that are hashed at once; the arrays made of them are some 40 times as large

# Where strangers have a subdomain each, that subdomain is the site.
_SHARED_HOSTS = frozenset(
    {
        "appspot.com",
        "azurewebsites.net",
        "blogspot.com",
        "cloudfront.net",
        "deviantart.com",
        "firebaseapp.com",
        "fly.dev",
        "github.io",
        "gitlab.io",
        "herokuapp.com",
        "hatenablog.com",
        "livejournal.com",
        "neocities.org",
        "netlify.app",
        "onrender.com",
        "over-blog.com",
        "pages.dev",
        "readthedocs.io",
        "sourceforge.io",
        "sourceforge.net",
        "substack.com",
        "tripod.com",
        "tumblr.com",
        "typepad.com",
        "vercel.app",
        "web.app",
        "weebly.com",
        "wixsite.com",
        "wordpress.com",
        "workers.dev",
    }
)
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*:(?=[/\\])", re.IGNORECASE)
_NUMERIC = re.compile(r"(?:0x[0-9a-f]+|[0-9]+)(?:\.(?:0x[0-9a-f]+|[0-9]+)){0,3}")
_HOST = re.compile(r"[^\s/?#:@\[\]<>|\"'()*,;=&%$!]+")
_HOSTS_FILE = re.compile(r"(?:0\.0\.0\.0|127\.0\.0\.1|::1?)\s+(\S+)")
_PLAIN = np.zeros(256, np.bool_)  # bytes of a line that is a domain and nothing else
_PLAIN[[*range(48, 58), *range(65, 91), *range(97, 123), 45, 46, 95]] = True
_LOWER = np.arange(256, dtype=np.uint8)
_LOWER[65:91] += 32


def host_of(url: str) -> str:
    """The host of an address, as browsers understand it; "" where it has none.

    Lower case, international names in their ASCII form (xn--), without user, port, and dot at the end. An IP address
    is in its usual notation, whatever the address wrote (`0x7f.1`, `2130706433`).
    """
    return _split(url)[0]


def site_of(host: str) -> str:
    """What pages are grouped by: the name that someone registered, by a rule instead of the list of public suffixes.

    The last two labels; three where the last has two letters and the one before at most three (`bbc.co.uk`), and
    below the hosts that give strangers a subdomain (`someone.github.io`). IP addresses are sites of their own.
    """
    labels = host.split(".")
    if len(labels) <= 2 or _is_ip(host):
        return host
    second = len(labels[-1]) == 2 and len(labels[-2]) <= 3
    return ".".join(labels[-3 if second or ".".join(labels[-2:]) in _SHARED_HOSTS else -2 :])


@dataclass(frozen=True)
class DomainList:
    """Listed domains and addresses. `entries` counts them without duplicates, `ignored` lines that are neither."""

    hashes: Hashes
    ignored: int = 0

    @property
    def entries(self) -> int:
        return len(self.hashes)

    @classmethod
    def load(cls, specs: Iterable[str], base: Path) -> DomainList:
        """Read lists (see `open_listed`): a domain a line, hosts files, `*.` and `.` before it, `||domain^`, addresses.

        Empty lines and comments (#, !) are passed over. Raises HerdError naming the file where no line is an entry.
        """
        found: list[Hashes] = []
        ignored = 0
        for spec in specs:
            for listed in open_listed(spec, base):
                hashes, other = _read_list(listed)
                if not len(hashes):
                    raise HerdError(f"blocklist '{spec}': no line of {listed.name} is a domain or an address")
                found.append(hashes)
                ignored += other
        return cls(np.unique(np.concatenate(found)) if found else np.empty(0, np.uint64), ignored)

    def write(self, path: Path) -> None:
        """Keep the hashes in a file for `read`."""
        np.save(path, self.hashes, allow_pickle=False)

    @classmethod
    def read(cls, path: Path) -> DomainList:
        """Hashes from a file of `write`, memory-mapped: the processes of a machine share one copy."""
        return cls(np.load(path, mmap_mode="r", allow_pickle=False))

    def blocked(self, url: str) -> str | None:
        """The entry that an address falls under: its host, a parent domain, its own address or a folder above it."""
        host, rest = _split(url)
        if not host or not self.entries:
            return None
        names = _names(host, rest)
        data = np.frombuffer("\n".join(names).encode(), np.uint8)
        ends = np.cumsum([len(name.encode()) + 1 for name in names]) - 1
        starts = np.concatenate([[0], ends[:-1] + 1])
        keys = stretch_hashes(data, starts, ends)
        places = np.minimum(np.searchsorted(self.hashes, keys), self.entries - 1)
        hits = np.flatnonzero(self.hashes[places] == keys)
        return names[hits[0]] if len(hits) else None


def _split(url: str) -> tuple[str, str]:
    """Host and what follows it ("/path?query"), normalised; ("", "") where there is no host."""
    url = "".join(url[: MAX_ADDRESS + 500].split())
    scheme = _SCHEME.match(url)
    slashes = url[scheme.end() if scheme else 0 :].replace("\\", "/")
    if not scheme and not slashes.startswith("//"):
        return "", ""
    rest = slashes.lstrip("/")
    end = min((place for mark in "/?#" if (place := rest.find(mark)) >= 0), default=len(rest))
    return _plain_host(rest[:end].rpartition("@")[2]), rest[end:].partition("#")[0][:MAX_ADDRESS]


def _plain_host(text: str) -> str:
    if text.startswith("["):
        try:
            return str(ipaddress.IPv6Address(text[1:].partition("]")[0]))
        except ValueError:
            return ""
    host = unicodedata.normalize("NFKC", unquote(text).partition(":")[0]).strip(".").lower()
    if not host or len(host) > MAX_HOST or not _HOST.fullmatch(host):
        return ""
    if _NUMERIC.fullmatch(host):
        try:
            return socket.inet_ntoa(socket.inet_aton(host))
        except OSError:
            return ""
    if not host.isascii():
        try:
            host = host.encode("idna").decode("ascii").lower()
        except UnicodeError:
            return ""
    return host


def _names(host: str, rest: str) -> list[str]:
    """All that a list may hold against an address, longest domain first; never a single label such as `com`."""
    host = _without_www(host)
    if _is_ip(host):
        names = [host]
    else:
        labels = host.split(".")
        names = [".".join(labels[first:]) for first in range(len(labels) - 1)]
    ends = [place for place, mark in enumerate(rest) if mark in "/?"][:64]
    return names + [host + rest[:end] for end in [*ends[1:], len(rest.rstrip("/"))] if end > 1]


def _without_www(host: str) -> str:
    return host[4:] if host.startswith("www.") and "." in host[4:] else host


def _is_ip(host: str) -> bool:
    return ":" in host or (host[-1:].isdigit() and _NUMERIC.fullmatch(host) is not None)


def _read_list(listed: Listed) -> tuple[Hashes, int]:
    """Hashes of a list's entries, and how many of its lines are neither entry, comment nor empty."""
    pieces: list[Hashes] = []
    ignored = 0
    for data in _line_chunks(listed.stream):
        hashes, odd = _hash_plain_lines(data)
        entries: list[str] = []
        for line in odd:
            if line and not line.startswith(("#", "!", "[", ";")):
                found = _entry(line)
                entries += found
                ignored += not found
        pieces += [hashes, _hash_names(entries)]
    return (np.unique(np.concatenate(pieces)) if pieces else np.empty(0, np.uint64)), ignored


def _line_chunks(stream: IO[bytes]) -> Iterator[NDArray[np.uint8]]:
    """A list in pieces that end where a line ends. A line of megabytes is cut: it is no entry anyway."""
    rest = b""
    while piece := stream.read(_CHUNK):
        whole, line_break, tail = (rest + piece).rpartition(b"\n")
        if line_break or len(tail) > _CHUNK:
            yield np.frombuffer(whole or tail, np.uint8)
        rest = tail if line_break or len(tail) <= _CHUNK else b""
    if rest:
        yield np.frombuffer(rest, np.uint8)


def _hash_plain_lines(data: NDArray[np.uint8]) -> tuple[Hashes, list[str]]:
    """Hashes of the lines that are a domain and nothing else, and the other lines as text.

    In arrays, because most lists are made of such lines alone: 124 MB take a few seconds.
    """
    breaks = np.flatnonzero(data == 10)
    starts = np.concatenate([[0], breaks + 1]).astype(np.int64)
    ends = np.concatenate([breaks, [len(data)]]).astype(np.int64)
    ends = ends - ((ends > starts) & (data[ends - 1] == 13))  # \r\n
    strange = np.zeros(len(data) + 1, np.int32)
    np.cumsum(~_PLAIN[data], out=strange[1:])
    dot = data == 46
    dots = np.zeros(len(data) + 1, np.int32)
    np.cumsum(dot, out=dots[1:])
    filled = ends > starts
    plain = filled & (strange[ends] == strange[starts]) & (dots[ends] > dots[starts]) & (ends - starts <= MAX_HOST)
    plain[plain] = ~dot[starts[plain]] & ~dot[ends[plain] - 1]
    odd = filled & ~plain & (ends - starts <= MAX_LINE)
    others = [
        data[start:end].tobytes().decode("utf-8", "replace").strip()
        for start, end in zip(starts[odd], ends[odd], strict=True)
    ]
    starts, ends = starts[plain], ends[plain]
    lower = _LOWER[data]
    www = (ends - starts > 4) & (dots[ends] - dots[starts] > 1)
    for offset, letter in enumerate(b"www."):
        www &= lower[np.minimum(starts + offset, len(data) - 1)] == letter
    return stretch_hashes(lower, starts + 4 * www, ends) if len(starts) else np.empty(0, np.uint64), others


def _entry(line: str) -> list[str]:
    """What a line with more than a plain domain lists: mostly one entry, several in a hosts file, none in prose."""
    text = line.split(" #", 1)[0].split("\t#", 1)[0].strip()
    if hosts := _HOSTS_FILE.match(text):
        names = [_plain_host(name) for name in text[hosts.start(1) :].split()]
        return [_without_www(name) for name in names if "." in name]
    text = text.removeprefix("||").rstrip("^").removeprefix("*").lstrip(".")
    host, rest = _split(text if _SCHEME.match(text) else f"//{text}") if not re.search(r"\s", text) else ("", "")
    if not host or ("." not in host and not _is_ip(host)):
        return []
    rest = rest.rstrip("/")
    return [_without_www(host) + rest]


def _hash_names(names: list[str]) -> Hashes:
    if not names:
        return np.empty(0, np.uint64)
    encoded = [name.encode() for name in names]
    ends = np.cumsum([len(name) + 1 for name in encoded]) - 1
    starts = np.concatenate([[0], ends[:-1] + 1])
    return stretch_hashes(np.frombuffer(b"\n".join(encoded), np.uint8), starts, ends)
