"""The metadata address of IPv6 where there is none to be had. In real namespaces: tests/integration."""
import io
import os
import sys

import pytest

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from mdproxy import linklocal, namespaces  # noqa: E402

DEVICES = u'''Inter-|   Receive
 face |bytes
    lo:       0
qr-11111111-22:   1
qg-11111111-22:   1
'''


@pytest.fixture
def files(monkeypatch):
    """The files of /proc/self/net, by name; others cannot be opened."""
    files = {'dev': DEVICES}

    def opened(path):
        name = os.path.basename(path)
        if name not in files:
            raise IOError(2, 'No such file or directory')
        return io.StringIO(files[name])
    for module in (linklocal, namespaces):
        monkeypatch.setattr(module, 'open', opened, raising=False)
    return files


def test_in_a_kernel_without_ipv6_no_interface_has_the_address(files):
    assert linklocal._interfaces() == [('qr-11111111-22', False)]


@pytest.mark.parametrize('device, has', [('qr-11111111-22', True), ('qg-11111111-22', False)])
def test_an_internal_interface_has_it_or_not(files, device, has):
    files['if_inet6'] = u'fe8000000000000000000000a9fea9fe 03 40 20 80 %s\n' % device
    assert linklocal._interfaces() == [('qr-11111111-22', has)]


def test_without_ip6tables_guests_of_ipv6_are_not_served_and_that_is_said(monkeypatch, caplog):
    monkeypatch.setenv('PATH', '/nonexistent')
    assert linklocal.wanted_rules(9697) == []
    assert 'guests of IPv6 are not served' in caplog.text
