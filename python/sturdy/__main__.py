"""``python -m sturdy``: the ``sturdy`` command, and two paths that build systems ask for.

``--cmake-prefix`` prints the folder for ``CMAKE_PREFIX_PATH``, ``--include`` the one with ``sturdy/sturdy.h``.
"""

from __future__ import annotations

import sys

from sturdy._load import package_dir


def main() -> None:
    """Print the folder asked for, or run the command."""
    if sys.argv[1:] == ["--cmake-prefix"]:
        print(package_dir())
    elif sys.argv[1:] == ["--include"]:
        print(package_dir() / "include")
    else:
        from sturdy.recipes.cli import main as command

        command()


if __name__ == "__main__":
    main()
