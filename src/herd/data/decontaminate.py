"""stub"""

from typing import Any

Benchmarks: Any = None
