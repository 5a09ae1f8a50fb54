"""Runs the commands, in a checkout (`python -m mdproxy`) and in a release (`python .../mdproxy`).

`serve` and `drop-in` are not for people: the first is what the opener becomes, the second is how a
launcher with one of upstream's names says which. Neither pays for the commands' own parser.
"""
import os
import sys

if not __package__:
    # Started by path: the first entry of sys.path is the package itself, whose `config` or `trust`
    # would then be importable as top-level modules. Its parent is what belongs there.
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def main(words):
    """Run what the words say; returns the exit status."""
    if words[:1] == ['serve']:
        from mdproxy import serve
        return serve.main(words[1:])
    if words[:1] == ['drop-in']:
        from mdproxy import dropin
        return dropin.main(words[1:])
    from mdproxy import cli
    return cli.main(words)


def end(status):
    """End with this status, also when what is left to be said has nowhere to go."""
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (IOError, OSError, ValueError):      # a full disk, a closed pipe
        os._exit(status)
    sys.exit(status)


if __name__ == '__main__':
    end(main(sys.argv[1:]))
