"""`python -m tests.complexity` names the functions whose cyclomatic complexity is above 15."""

from __future__ import annotations

import sys
from pathlib import Path

from radon.complexity import cc_visit

ROOT = Path(__file__).parents[1]
MOST = 15


def main() -> int:
    complex_ = [
        f"{path.relative_to(ROOT)}:{block.lineno}: {block.name} has {block.complexity}"
        for folder in ("tdev_models", "migrations", "benchmarks")
        for path in sorted((ROOT / folder).rglob("*.py"))
        for block in cc_visit(path.read_text())
        if block.letter != "C" and block.complexity > MOST  # methods are counted by themselves
    ]
    print(*complex_, f"{len(complex_)} functions are more complex than {MOST}", sep="\n")
    return 1 if complex_ else 0


if __name__ == "__main__":
    sys.exit(main())
