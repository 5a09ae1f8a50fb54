"""Runs the commands from a checkout (`python -m mdproxy`) and from a release (`python .../mdproxy`)."""
import os
import sys

if not __package__:
    # Started by path: the first entry of sys.path is the package itself, whose `config` or `trust`
    # would then be importable as top-level modules. Its parent is what belongs there.
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

from mdproxy.cli import main  # noqa: E402

if __name__ == '__main__':
    sys.exit(main())
