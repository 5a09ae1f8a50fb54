"""Files for node_exporter's textfile collector.

Rules kept:

- A reader sees the old file or the new one, whole; what cannot be written leaves the old one, whose age
  tells of it.
- The folder may be another user's than root's, who writes: no link in it leads anywhere, because the file
  beside the old one is made anew under a name that nobody knows before.
"""
import os
import tempfile


class TextfileError(Exception):
    """A file that cannot be written; the message names it and says why."""


def write(path, text):
    """Put this native str in place of the file, readable by all. Raises TextfileError."""
    folder, name = os.path.split(path)
    temporary = None
    try:
        # The collector takes what ends in .prom; this does not.
        descriptor, temporary = tempfile.mkstemp(prefix='.%s.' % name, dir=folder or os.curdir)
        with os.fdopen(descriptor, 'w') as out:
            out.write(text)
            os.fchmod(out.fileno(), 0o644)
        os.rename(temporary, path)
        temporary = None
    except EnvironmentError as error:
        raise TextfileError('%s cannot be written: %s' % (path, error.strerror or error))
    finally:
        if temporary:
            _forget(temporary)


def _forget(path):
    try:
        os.unlink(path)
    except OSError:
        pass
