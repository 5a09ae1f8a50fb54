"""The neighbour table, out of bytes as a kernel sends them.

With the real kernel in real namespaces: tests/integration/test_guests6.py.
"""
import binascii
import errno
import os
import socket
import struct
import sys

import pytest

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from mdproxy import neighbours  # noqa: E402

GUEST, MAC = 'fe80::f816:3eff:fe00:1', 'fa:16:3e:00:00:01'
REACHABLE, STALE, DELAY, PROBE, PERMANENT = 0x02, 0x04, 0x08, 0x10, 0x80
NONE, INCOMPLETE, FAILED, NOARP = 0x00, 0x01, 0x20, 0x40
NEIGHBOUR, ERROR, DONE = 28, 2, 3
# What Linux 6.18 has sent to the first question through a socket for fe80::77 on interface 2.
RECORDED = binascii.unhexlify(
    '580000001c00000001000000c12500000a000000020000008000000114000100fe800000000000000000000000000077'
    '0a000200020000000077000008000400000000001400030008000000080000000800000001000000')


def attribute(kind, value):
    return struct.pack('=HH', 4 + len(value), kind) + value + b'\0' * (-len(value) % 4)


def packed(mac):
    return binascii.unhexlify(mac.replace(':', ''))


LLADDR = packed(MAC)


def neighbour(address=GUEST, lladdr=LLADDR, interface=2, state=REACHABLE, family=socket.AF_INET6):
    """The body of a neighbour message; lladdr: bytes, or None."""
    body = struct.pack('=BxxxiHBB', family, interface, state, 0, 1)
    body += attribute(1, socket.inet_pton(socket.AF_INET6, address))
    if lladdr is not None:
        body += attribute(2, lladdr)
    return body + attribute(4, b'\0' * 4) + attribute(3, b'\0' * 16)


def error(number):
    return struct.pack('=i', -number) + b'\0' * 20


class Kernel(object):
    """A netlink socket whose kernel answers as scripted.

    answers: for each question the datagrams that come, each a list of (type, body) or (type, body,
    sequence) messages, or bytes as they are. Then nothing comes. sender: the port id of who sends.
    """

    def __init__(self, *answers, **kwargs):
        self._answers, self._coming = list(answers), []
        self._sender = kwargs.get('sender', 0)
        self.asked = []

    def settimeout(self, seconds):
        assert 0 < seconds < 1

    def send(self, data):
        length, kind, flags, sequence, _ = struct.unpack_from('=IHHII', data)
        assert length == len(data) and kind == 30
        self.asked.append(data)
        for datagram in self._answers.pop(0):
            if not isinstance(datagram, bytes):
                datagram = b''.join(self._message(sequence, *message) for message in datagram)
            self._coming.append(datagram)

    def _message(self, asked, kind, body, sequence=None):
        return struct.pack('=IHHII', 16 + len(body), kind, 0, asked if sequence is None else sequence,
                           77) + body + b'\0' * (-len(body) % 4)

    def recvfrom(self, _):
        if not self._coming:
            raise socket.timeout()
        return self._coming.pop(0), (self._sender, 0)


def mac(*datagrams, **kwargs):
    """What is found in the answer to one question."""
    return neighbours.Neighbours(Kernel(datagrams, **kwargs)).mac(GUEST, 2)


def whole_table(*datagrams):
    """What is found in a table that an older kernel gives."""
    kernel = Kernel([[(ERROR, error(errno.EOPNOTSUPP))]], datagrams)
    return neighbours.Neighbours(kernel).mac(GUEST, 2)


def test_a_kernels_answer_is_read_and_its_question_is_in_the_kernels_form():
    kernel = Kernel([RECORDED])
    assert neighbours.Neighbours(kernel).mac('fe80::77', 2) == '02:00:00:00:00:77'
    assert binascii.hexlify(kernel.asked[0]) == (
        b'300000001e00010001000000000000000a00000002000000000000001400010'
        b'0fe800000000000000000000000000077')


@pytest.mark.parametrize('state, counts', [
    (REACHABLE, True), (STALE, True), (DELAY, True), (PROBE, True), (PERMANENT, True),
    (NONE, False), (INCOMPLETE, False), (FAILED, False), (NOARP, False)])
def test_only_an_entry_that_was_resolved_counts(state, counts):
    entry = [(NEIGHBOUR, neighbour(state=state))]
    assert mac(entry) == (MAC if counts else None)
    assert whole_table(entry, [(DONE, b'\0' * 4)]) == (MAC if counts else None)
    assert type(mac([(NEIGHBOUR, neighbour())])) is str


@pytest.mark.parametrize('other', [
    dict(address='fe80::f816:3eff:fe00:2'), dict(interface=3), dict(family=socket.AF_INET),
    dict(lladdr=None), dict(lladdr=b''), dict(lladdr=b'\xfa\x16\x3e\0\0'),
    dict(lladdr=b'\xfa\x16\x3e\0\0\x01\0\0')])
def test_an_entry_of_another_or_without_a_mac_address_is_none(other):
    assert mac([(NEIGHBOUR, neighbour(**other))]) is None


def test_what_answers_another_question_is_passed_over():
    late = neighbour(lladdr=packed('fa:16:3e:00:00:99'))
    assert mac([(NEIGHBOUR, late, 0), (ERROR, error(errno.ENOENT), 7)],
               [(DONE, b'', 0), (NEIGHBOUR, neighbour())]) == MAC


def test_what_the_kernel_did_not_send_is_passed_over():
    assert mac([(NEIGHBOUR, neighbour())], sender=4711) is None


@pytest.mark.parametrize('number', [errno.ENOENT, errno.ENODEV, errno.EINVAL, errno.EPERM])
def test_no_entry_is_none_and_the_kernel_is_asked_in_the_same_way_next_time(number):
    kernel = Kernel([[(ERROR, error(number))]], [[(NEIGHBOUR, neighbour())]])
    table = neighbours.Neighbours(kernel)
    assert table.mac(GUEST, 2) is None
    assert table.mac(GUEST, 2) == MAC
    assert [struct.unpack_from('=H', asked, 6)[0] for asked in kernel.asked] == [1, 1]


def test_an_older_kernel_is_asked_for_the_whole_table_from_then_on():
    table_ = [[(NEIGHBOUR, neighbour(address='fe80::9', lladdr=packed('fa:16:3e:00:00:09')))],
              [(NEIGHBOUR, neighbour()), (NEIGHBOUR, neighbour(interface=3, lladdr=b'\2' * 6))],
              [(DONE, b'\0' * 4)]]
    kernel = Kernel([[(ERROR, error(errno.EOPNOTSUPP))]], table_, table_)
    table = neighbours.Neighbours(kernel)
    assert table.mac(GUEST, 2) == table.mac(GUEST, 2) == MAC
    assert [struct.unpack_from('=H', asked, 6)[0] for asked in kernel.asked] == [1, 0x301, 0x301]
    assert len(set(struct.unpack_from('=I', asked, 8)[0] for asked in kernel.asked)) == 3


def test_a_table_that_is_not_told_to_the_end_is_none():
    """Or what comes of it later would be in the way of the next answer."""
    assert whole_table([(NEIGHBOUR, neighbour())]) is None


@pytest.mark.parametrize('length', range(len(RECORDED)))
def test_an_answer_that_was_cut_off_is_none(length):
    assert neighbours.Neighbours(Kernel([RECORDED[:length]])).mac('fe80::77', 2) is None


@pytest.mark.parametrize('index', range(len(RECORDED)))
def test_an_answer_with_any_byte_altered_is_none_or_a_mac_address(index):
    for value in range(256):
        altered = bytearray(RECORDED)
        altered[index] = value
        found = neighbours.Neighbours(Kernel([bytes(altered)])).mac('fe80::77', 2)
        assert found is None or len(found) == 17


@pytest.mark.parametrize('body', [b'', b'\0' * 3])
def test_an_error_without_its_number_is_none(body):
    assert mac([(ERROR, body)]) is None


def test_a_kernel_that_never_ends_is_not_listened_to_for_long(monkeypatch):
    now = [100.0]

    def later():
        now[0] += 0.001
        return now[0]
    monkeypatch.setattr(neighbours, 'monotonic', later)
    kernel = Kernel([[(NEIGHBOUR, neighbour(), 0)]] * 10000)
    assert neighbours.Neighbours(kernel).mac(GUEST, 2) is None
    assert len(kernel._coming) > 9900


def test_a_socket_that_fails_is_none():
    class Broken(Kernel):
        def send(self, data):
            raise socket.error(errno.ENOBUFS, 'no')
    assert neighbours.Neighbours(Broken()).mac(GUEST, 2) is None


@pytest.mark.parametrize('address', ['10.0.0.3', '', 'fe80::1%eth0'])
def test_what_is_no_ipv6_address_is_no_neighbour(address):
    assert neighbours.Neighbours(Kernel()).mac(address, 2) is None
