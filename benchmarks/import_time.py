"""Import time of the package beside that of what it stands on, in one run."""

import compileall
import statistics
import subprocess
import sys
import time
from pathlib import Path

OURS, THEIRS = "import tdev_models", "import pynamodb.models, botocore.session"
ROUNDS = 15


def seconds(program: str) -> float:
    """Return the wall time of one fresh interpreter that runs the program."""
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-c", program], check=True)
    return time.perf_counter() - begun


def main() -> None:
    # An installed package has its bytecode beside it.
    compileall.compile_dir(Path(__file__).parents[1] / "tdev_models", quiet=1)
    pairs = [(seconds("pass"), seconds(OURS), seconds(THEIRS)) for _ in range(ROUNDS)]
    bare, ours, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median((a - bare) / (b - bare) for _, a, b in pairs)
    print(f"{OURS}: {ours - bare:.3f} s")
    print(f"{THEIRS}: {theirs - bare:.3f} s")
    print(f"ratio, the median of {ROUNDS} pairs: {ratio:.2f}")


if __name__ == "__main__":
    main()
