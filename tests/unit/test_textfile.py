"""A reader of a file that is written again and again sees one of them whole, and nothing else."""
import os
import stat
import sys

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
if ROOT not in sys.path:
    sys.path.insert(0, ROOT)

from mdproxy import textfile  # noqa: E402


def test_it_is_written_anew_and_readable_by_all(tmpdir):
    path = tmpdir.join('a.prom')
    path.write('old')
    reading = path.open()
    umask = os.umask(0o077)
    try:
        textfile.write(str(path), 'new\n')
    finally:
        os.umask(umask)
    assert path.read() == 'new\n' and stat.S_IMODE(path.stat().mode) == 0o644
    assert reading.read() == 'old'      # who had it open reads on what it was
    assert tmpdir.listdir() == [path]


def test_it_goes_where_no_link_leads(tmpdir):
    victim, path = tmpdir.join('victim'), tmpdir.join('a.prom')
    victim.write('untouched')
    path.mksymlinkto(victim)
    textfile.write(str(path), 'new')
    assert victim.read() == 'untouched' and not path.islink() and path.read() == 'new'


@pytest.mark.parametrize('broken', ['fchmod', 'rename'])
def test_what_cannot_be_written_leaves_the_old_one_and_nothing_else(tmpdir, monkeypatch, broken):
    path = tmpdir.join('a.prom')
    path.write('old')

    def refuse(*_):
        raise OSError(28, 'No space left on device')
    monkeypatch.setattr(textfile.os, broken, refuse)
    with pytest.raises(textfile.TextfileError) as refused:
        textfile.write(str(path), 'new')
    assert str(refused.value) == '%s cannot be written: No space left on device' % path
    assert path.read() == 'old' and tmpdir.listdir() == [path]
