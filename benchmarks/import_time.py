"""Import time of the package beside that of what it stands on, in one run."""

import compileall
import statistics
import subprocess
import sys
import time
from pathlib import Path

# What a program needs for errors and settings, and for its first call.
OURS = ("import tdev_models", "from tdev_models import track_session")
THEIRS = "import pynamodb.models, botocore.session"
ROUNDS = 15


def seconds(program: str) -> float:
    """Return the wall time of one fresh interpreter that runs the program."""
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-c", program], check=True)
    return time.perf_counter() - begun


def main() -> None:
    # An installed package has its bytecode beside it.
    compileall.compile_dir(Path(__file__).parents[1] / "tdev_models", quiet=1)
    programs = ("pass", THEIRS, *OURS)
    rounds = [[seconds(program) for program in programs] for _ in range(ROUNDS)]
    for number, program in enumerate(programs[1:], 1):
        took = statistics.median(times[number] - times[0] for times in rounds)
        ratio = statistics.median(
            (times[number] - times[0]) / (times[1] - times[0]) for times in rounds
        )
        print(f"{took:.3f} s, ratio {ratio:.2f}: {program}")


if __name__ == "__main__":
    main()
