"""``nightjar bench``: finds the benchmark, which stands in the repository beside this package and not in it."""

import sys
from collections.abc import Sequence
from pathlib import Path

_COMMAND = Path("bench") / "serve" / "cli.py"


def run(argv: Sequence[str]) -> int:
    """Runs the benchmark with these arguments; returns its exit code, or 2 if it is not there."""
    root = find(Path.cwd(), Path(__file__).resolve().parents[2])
    if root is None:
        print(
            "nightjar: the benchmark is not part of the installed package: run `nightjar bench` in a clone of the "
            "project's repository, or install the package from there in editable form (`make serve` does)",
            file=sys.stderr,
        )
        return 2
    sys.path.insert(0, str(root))
    from bench.serve.cli import main

    return main(argv)


def find(*places: Path) -> Path | None:
    """The first of these folders that holds the benchmark."""
    return next((place for place in places if (place / _COMMAND).is_file()), None)
