"""What benchmarks share: virtual environments of peers, and the machine a figure belongs to."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PEERS = ROOT / ".venv" / "peers"


def peer(name: str, packages: list[str]) -> Path:
    """Python of a peer's own virtual environment, made on the first call. Only torch's version is ours."""
    python = PEERS / name / "bin" / "python"
    if not python.exists():
        pinned = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("torch==")]
        subprocess.run([sys.executable, "-m", "venv", str(PEERS / name)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", *pinned, "numpy", *packages], check=True)
    return python


def versions(python: Path, packages: list[str]) -> dict[str, str]:
    """Installed versions in a virtual environment, to stand beside a measurement."""
    code = "import sys, importlib.metadata as m; print(*(m.version(name) for name in sys.argv[1:]))"
    done = subprocess.run([str(python), "-c", code, *packages], capture_output=True, text=True, check=True)
    return dict(zip(packages, done.stdout.split(), strict=True))


def machine() -> dict[str, Any]:
    from herd.train.hardware import machine as facts

    return facts()
