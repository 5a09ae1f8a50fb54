"""What a guest's bytes become: a request with one meaning, or a refusal with the right status."""
import time

import pytest

from mdproxy import http1

GET = b'GET /latest/meta-data HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n'


def read(data, **limits):
    reader = http1.RequestReader(**limits)
    reader.feed(data)
    return reader.next_request()


def head(line=b'GET / HTTP/1.1', *fields):
    return b'\r\n'.join((line, b'Host: h') + fields) + b'\r\n\r\n'


def chunked(body, *fields):
    return head(b'PUT /x HTTP/1.1', b'Transfer-Encoding: chunked', *fields) + body


def refusal(data, **limits):
    with pytest.raises(http1.ProtocolError) as caught:
        read(data, **limits)
    return caught.value


def test_a_plain_get_has_all_its_parts():
    request = read(b'GET /latest?x=%41 HTTP/1.1\r\nHost: h:80\r\nUser-AGENT:  curl/7 \t\r\n'
                   b'Empty:\r\n\r\n')
    assert (request.method, request.target, request.minor) == (b'GET', b'/latest?x=%41', 1)
    assert request.headers == ((b'host', b'h:80'), (b'user-agent', b'curl/7'), (b'empty', b''))
    assert (request.body, request.keep_alive) == (b'', True)


@pytest.mark.parametrize('method', [b'GET', b'HEAD', b'POST', b'PUT'])
@pytest.mark.parametrize('minor', [0, 1])
def test_four_methods_and_two_versions_are_read(method, minor):
    request = read(method + b' / HTTP/1.%d\r\nHost: h\r\n\r\n' % minor)
    assert (request.method, request.minor) == (method, minor)


def test_everything_is_bytes():
    request = read(head(b'POST / HTTP/1.1', b'Content-Length: 1') + b'x')
    for value in (request.method, request.target, request.body, request.headers[0][0],
                  request.headers[0][1]):
        assert type(value) is bytes


def test_everything_is_bytes_when_pieces_were_joined():
    reader = http1.RequestReader()
    for byte in bytearray(head(b'POST / HTTP/1.1', b'Content-Length: 1') + b'x'):
        reader.feed(bytes(bytearray([byte])))
    request = reader.next_request()
    for value in (request.method, request.target, request.body, request.headers[0][0],
                  request.headers[0][1]):
        assert type(value) is bytes


def test_a_lookup_by_name_needs_one_such_field():
    request = read(head(b'GET / HTTP/1.1', b'Content-Type: a', b'X-A: 1', b'x-a: 2'))
    assert request.header(b'content-type') == b'a'
    assert request.header(b'x-a') is None
    assert request.header(b'x-b') is None


@pytest.mark.parametrize('target, path', [
    (b'http://169.254.169.254/latest?a', b'/latest?a'),
    (b'HTTP://169.254.169.254:80/', b'/'),
    (b'http://169.254.169.254', b'/'),
])
def test_the_absolute_form_of_our_address_is_its_path(target, path):
    assert read(head(b'GET ' + target + b' HTTP/1.1')).target == path


@pytest.mark.parametrize('target', [
    b'http://169.254.169.253/', b'http://169.254.169.254:8775/', b'http://169.254.169.254.evil/',
    b'http://169.254.169.254@evil/', b'http://user@169.254.169.254/', b'http://169x254.169.254/',
    b'https://169.254.169.254/', b'169.254.169.254:80', b'*', b'latest', b'?a', b'',
    b'/a\tb', b'/a\x7f', b'/\xc3\xa9', b'/a\x00', b'/\x0b',
])
def test_any_other_target_is_refused(target):
    assert refusal(head(b'GET ' + target + b' HTTP/1.1')).status == 400


@pytest.mark.parametrize('line, status', [
    (b'get / HTTP/1.1', 405), (b'DELETE / HTTP/1.1', 405), (b'CONNECT h:80 HTTP/1.1', 405),
    (b'OPTIONS * HTTP/1.1', 405), (b'GETX / HTTP/1.1', 405), (b'A_B / HTTP/1.1', 405),
    (b'G(T / HTTP/1.1', 400), (b'GET / HTTP/1.2', 505), (b'GET / HTTP/2.0', 505),
    (b'PRI * HTTP/2.0', 505), (b'GET / HTTP/0.9', 505), (b'GET / HTTP/1.10', 400),
    (b'GET / HTTP/1', 400), (b'GET / http/1.1', 400), (b'GET / XTTP/1.1', 400),
    (b'GET / HTTP/1.1 ', 400), (b' GET / HTTP/1.1', 400), (b'GET  / HTTP/1.1', 400),
    (b'GET /  HTTP/1.1', 400), (b'GET\t/ HTTP/1.1', 400), (b'GET /a b HTTP/1.1', 400),
    (b'GET /', 400), (b'GET', 400), (b'', 400), (b'\x16\x03\x01', 400),
    (b'\r\nGET / HTTP/1.1', 400),
])
def test_a_request_line_is_refused_with_its_status(line, status):
    assert refusal(head(line)).status == status


@pytest.mark.parametrize('data', [
    b'\n\n', b'\r\n\r\n', b'\n\r\n',
    b'GET / HTTP/1.0\n\n',
    b'GET / HTTP/1.0\r\n\n',
    b'GET / HTTP/1.0\n\r\n',
    b'GET / HTTP/1.1\nHost: h\r\n\r\n',
    b'GET / HTTP/1.1\r\nHost: h\n\n',
    b'GET / HTTP/1.1\r\nHost: h\nX-A: b\r\n\r\n',
    b'GET / HTTP/1.1\r\nHost: h\rX-A: b\r\n\r\n',
    b'GET / HTTP/1.1\r\nHost: h\r\r\n\r\n',
    b'GET / HTTP/1.1\r\r\nHost: h\r\n\r\n',
    b'GET /\r HTTP/1.1\r\nHost: h\r\n\r\n',
])
def test_a_line_ends_with_cr_lf_and_nothing_else_does(data):
    assert refusal(data).status == 400


def test_a_bare_line_end_is_refused_as_soon_as_another_reader_would_see_a_head():
    hidden = b'GET / HTTP/1.1\r\nHost: h\n\n'
    assert str(refusal(hidden)) == str(refusal(hidden + b'X: y\r\n\r\n' + GET))


@pytest.mark.parametrize('field, reason', [
    (b' folded', 'folded header field'),
    (b'\tfolded: x', 'folded header field'),
    (b'no colon', 'header field without a colon'),
    (b': value', 'empty header name'),
    (b'X-A : b', 'white space before the colon'),
    (b'X-A\t: b', 'white space before the colon'),
    (b'X_Instance_ID: b', 'underscore or malformed header name'),
    (b'X A: b', 'underscore or malformed header name'),
    (b'X(A): b', 'underscore or malformed header name'),
    (b'X-\xc3\xa9: b', 'underscore or malformed header name'),
    (b'X-A\x00: b', 'underscore or malformed header name'),
    (b'"X-A": b', 'underscore or malformed header name'),
    (b'X-A: b\x00c', 'control byte in a header value'),
    (b'X-A: \x0b', 'control byte in a header value'),
    (b'X-A: b\x7f', 'control byte in a header value'),
    (b'X-A: \x1b[0m', 'control byte in a header value'),
])
@pytest.mark.parametrize('before', [(), (b'A: b',)])
def test_a_malformed_field_is_refused_and_the_reason_says_why(field, reason, before):
    for after in ((), (b'Y: z',)):
        error = refusal(head(b'GET / HTTP/1.1', *(before + (field,) + after)))
        assert (error.status, error.reason) == (400, reason)


def test_a_value_may_hold_colons_tabs_and_other_alphabets():
    request = read(head(b'GET / HTTP/1.1', b'X-A: a: b\tc \xc3\xa9'))
    assert request.header(b'x-a') == b'a: b\tc \xc3\xa9'


@pytest.mark.parametrize('fields', [
    (), (b'Host: a', b'Host: a'), (b'Host: a', b'host: b'), (b'Host: a b',), (b'Host: a/b',),
    (b'Host: a\xc3\xa9',), (b'Host: <a>',),
])
def test_http_1_1_has_exactly_one_wellformed_host(fields):
    assert refusal(b'\r\n'.join((b'GET / HTTP/1.1',) + fields) + b'\r\n\r\n').status == 400


@pytest.mark.parametrize('host', [b'', b'169.254.169.254:80', b'[fe80::a9fe:a9fe%25eth0]:80',
                                  b'metadata.internal', b'a_b'])
def test_other_hosts_are_ours_too(host):
    assert read(b'GET / HTTP/1.1\r\nHost: ' + host + b'\r\n\r\n').header(b'host') == host


def test_http_1_0_needs_no_host_but_may_not_have_two():
    assert read(b'GET / HTTP/1.0\r\n\r\n').headers == ()
    assert refusal(b'GET / HTTP/1.0\r\nHost: a\r\nHost: a\r\n\r\n').status == 400


@pytest.mark.parametrize('minor, connection, keep_alive', [
    (1, (), True), (1, (b'close',), False), (1, (b'Keep-Alive, CLOSE',), False),
    (1, (b'keep-alive', b'close'), False), (1, (b'closed',), True), (1, (b'',), True),
    (0, (), False), (0, (b'Keep-Alive',), True), (0, (b'keep-alive, close',), False),
])
def test_keep_alive_follows_version_and_connection_options(minor, connection, keep_alive):
    fields = [b'Connection: ' + value for value in connection]
    request = read(head(b'GET / HTTP/1.%d' % minor, *fields))
    assert request.keep_alive is keep_alive


def test_after_a_request_that_closes_nothing_is_read():
    reader = http1.RequestReader()
    reader.feed(head(b'GET / HTTP/1.1', b'Connection: close') + GET)
    assert reader.next_request().keep_alive is False
    reader.feed(GET)
    assert reader.next_request() is None
    assert reader.idle


# Bodies

@pytest.mark.parametrize('method', [b'GET', b'HEAD', b'POST', b'PUT'])
def test_a_body_has_the_length_that_was_told(method):
    request = read(head(method + b' / HTTP/1.1', b'Content-Length: 4') + b'\x00\r\n\xff')
    assert request.body == b'\x00\r\n\xff'


def test_a_request_comes_only_with_its_whole_body():
    reader = http1.RequestReader()
    reader.feed(head(b'POST / HTTP/1.1', b'Content-Length: 3') + b'ab')
    assert reader.next_request() is None
    reader.feed(b'cGET')
    assert reader.next_request().body == b'abc'
    assert reader.stage == 'head'


def test_a_chunked_body_is_decoded_and_its_extensions_and_trailers_are_forgotten():
    request = read(chunked(b'3\r\nabc\r\n00A;x="y;\xc3\xa9"\r\n0123456789\r\n0;last\r\n'
                           b'X-Instance-ID: i\r\n\r\n'))
    assert request.body == b'abc0123456789'
    assert request.header(b'x-instance-id') is None


@pytest.mark.parametrize('body', [
    b'g\r\n', b'\r\n', b'-1\r\n', b'+1\r\na\r\n', b'0x1\r\na\r\n', b' 1\r\na\r\n', b'1 \r\na\r\n',
    b'1 ;x\r\na\r\n', b'1_0\r\n', b'1\na\r\n', b'1\r\nab\r\n', b'1\r\na\n0\r\n\r\n', b'1\r\na\r0',
    b'1\r\na0\r\n\r\n', b'0\n\n', b'0\r\n\n', b'0' * 17 + b'\r\n\r\n', b'1;\x00\r\na\r\n',
    b'1;a\rb\r\na\r\n', b'0\r\nbad trailer\r\n\r\n', b'0\r\nX_A: b\r\n\r\n', b'0\r\n a\r\n\r\n',
    b'0\r\nContent-Length: 1\r\n\r\n', b'0\r\nA: b\r\ntransfer-encoding: chunked\r\n\r\n',
    b'0\r\nA: b\n\n', b'0\r\nA: b\rc\r\n\r\n',
])
def test_a_chunked_body_is_read_strictly(body):
    assert refusal(chunked(body)).status == 400


def test_extensions_and_trailers_together_are_bounded():
    limits = {'max_head': 100}
    one = b'1;' + b'e' * 29 + b'\r\na\r\n'
    assert read(chunked(one * 3 + b'0\r\nT: abcd\r\n\r\n'), **limits).body == b'aaa'
    assert refusal(chunked(one * 3 + b'0\r\nT: abcdef\r\n\r\n'), **limits).status == 431
    assert refusal(chunked(one * 4), **limits).status == 400
    assert refusal(chunked(b'1;' + b'e' * 200), **limits).status == 400


@pytest.mark.parametrize('fields, status', [
    ((b'Content-Length: 1', b'Transfer-Encoding: chunked'), 400),
    ((b'Transfer-Encoding: chunked', b'Content-Length: 1'), 400),
    ((b'Content-Length: 1', b'Content-Length: 1'), 400),
    ((b'Content-Length: 1', b'content-length: 2'), 400),
    ((b'Content-Length: 1, 1',), 400), ((b'Content-Length: +1',), 400),
    ((b'Content-Length: -1',), 400), ((b'Content-Length: 0x1',), 400),
    ((b'Content-Length: 1.0',), 400), ((b'Content-Length: 1_0',), 400),
    ((b'Content-Length: 1 0',), 400), ((b'Content-Length:',), 400),
    ((b'Content-Length: \xb2',), 400), ((b'Content-Length: 00000000001',), 400),
    ((b'Transfer-Encoding: chunked', b'Transfer-Encoding: chunked'), 400),
    ((b'Transfer-Encoding: chunked, chunked',), 400), ((b'Transfer-Encoding:',), 400),
    ((b'Transfer-Encoding: chunked,',), 400),
    ((b'Transfer-Encoding: gzip, chunked',), 501), ((b'Transfer-Encoding: identity',), 501),
    ((b'Transfer-Encoding: xchunked',), 501), ((b'Transfer-Encoding: chunked;a=b',), 501),
    ((b'Transfer-Encoding: "chunked"',), 501),
])
def test_a_body_has_one_framing_or_is_refused(fields, status):
    assert refusal(head(b'POST / HTTP/1.1', *fields) + b'1\r\na\r\n0\r\n\r\n').status == status


def test_http_1_0_knows_no_transfer_encoding():
    assert refusal(head(b'POST / HTTP/1.0', b'Transfer-Encoding: chunked')).status == 400


def test_the_coding_is_compared_without_case():
    assert read(head(b'PUT / HTTP/1.1', b'Transfer-Encoding:\tChunked ') + b'0\r\n\r\n').body == b''


# Limits

def test_a_head_may_fill_its_limit_and_no_more():
    full = head(b'GET / HTTP/1.1', b'X: ' + b'y' * 50)
    assert read(full, max_head=len(full)).header(b'x') == b'y' * 50
    assert refusal(full, max_head=len(full) - 1).status == 431
    assert refusal(full[:-4], max_head=len(full) - 4).status == 431


def test_the_default_limits_are_those_of_the_contract():
    assert read(head(b'GET / HTTP/1.1', b'X: ' + b'y' * 16300)) is not None
    assert refusal(head(b'GET / HTTP/1.1', b'X: ' + b'y' * 16384)).status == 431
    assert read(head(b'GET / HTTP/1.1', *[b'X: y'] * 63)) is not None
    assert refusal(head(b'GET / HTTP/1.1', *[b'X: y'] * 64)).status == 431
    assert refusal(head(b'PUT / HTTP/1.1', b'Content-Length: 65537')).status == 413
    assert len(read(head(b'PUT / HTTP/1.1', b'Content-Length: 65536') + b'x' * 65536).body) == 65536


def test_a_body_over_the_limit_is_refused_before_it_comes():
    assert refusal(head(b'PUT / HTTP/1.1', b'Content-Length: 11'), max_body=10).status == 413
    assert refusal(chunked(b'b\r\n'), max_body=10).status == 413
    assert refusal(chunked(b'a\r\n0123456789\r\n1\r\n'), max_body=10).status == 413
    assert read(chunked(b'a\r\n0123456789\r\n0\r\n\r\n'), max_body=10).body == b'0123456789'


@pytest.mark.parametrize('data', [
    GET[:-1], head(b'PUT / HTTP/1.1', b'Content-Length: 9') + b'x', chunked(b'5\r\nab'),
    chunked(b'0\r\nA: b'), chunked(b'1;e')])
def test_an_unfinished_request_is_awaited(data):
    assert read(data) is None


# Of this process alone: what else the machine does must not decide.
cpu_seconds = getattr(time, 'process_time', None) or time.clock


def seconds(pieces, size):
    """Best of three for reading a request of about `size` bytes, given piece by piece."""
    best = None
    for _ in range(3):
        reader = http1.RequestReader(max_head=size * 2, max_fields=size, max_body=size)
        begin = cpu_seconds()
        for piece in pieces:
            reader.feed(piece)
            try:
                done = reader.next_request()
            except http1.ProtocolError:
                done = True
        spent = cpu_seconds() - begin
        best = spent if best is None else min(best, spent)
        assert done
    return best


def single(data):
    return [data[start:start + 1] for start in range(len(data))]


@pytest.mark.parametrize('make', [
    lambda size: single(head(b'GET / HTTP/1.1', b'X: ' + b'y' * size)),
    lambda size: single(head(b'PUT / HTTP/1.1', b'Content-Length: %d' % size) + b'z' * size),
    lambda size: single(chunked(b'%x\r\n' % size + b'z' * size + b'\r\n0\r\n\r\n')),
    lambda size: single(chunked(b'1\r\nz\r\n' * (size // 6) + b'0\r\n\r\n')),
    lambda size: single(chunked(b'0;' + b'e' * size + b'\r\n\r\n')),
    lambda size: [GET * (size // len(GET))] + [b''] * (size // len(GET) - 1),
    lambda size: [head(b'GET / HTTP/1.1', b'X:' + b' ' * size + b'\x00')],
    lambda size: [head(b'GET / HTTP/1.1', b'X:' + b' y' * (size // 2) + b' \x00')],
    lambda size: [head(b'GET / HTTP/1.1', *[b'X:'] * (size // 4))],
    lambda size: [head(b'GET / HTTP/1.1', b'x' * size)],
    lambda size: [head(b'GET /' + b'x' * size)],
    lambda size: [head(b'GET / HTTP/1.1', b'Connection:' + b', ' * (size // 2))],
    lambda size: [head(b'PUT / HTTP/1.1', b'Transfer-Encoding:' + b', ' * (size // 2))],
])
def test_four_times_the_bytes_are_not_sixteen_times_the_work(make):
    size = 32768
    assert seconds(make(4 * size), 4 * size) < 10 * seconds(make(size), size) + 0.01


# The connection

def test_pipelined_requests_come_in_order():
    reader = http1.RequestReader()
    reader.feed(GET + chunked(b'1\r\na\r\n0\r\n\r\n')
                + head(b'PUT / HTTP/1.1', b'Content-Length: 1') + b'b' + GET[:10])
    taken = [reader.next_request() for _ in range(4)]
    assert [request.body for request in taken[:3]] == [b'', b'a', b'b']
    assert taken[3] is None
    reader.feed(GET[10:])
    assert reader.next_request().target == b'/latest/meta-data'


def test_remembered_fields_are_those_of_this_request():
    """The fields of the last request are remembered; equal bytes must not mean too much."""
    reader = http1.RequestReader()
    fields = b'\r\nHost: h\r\nAccept: */*\r\n\r\n'
    kept = b'\r\nConnection: keep-alive\r\n\r\n'
    reader.feed(b'GET /1 HTTP/1.1' + fields + b'GET /2 HTTP/1.1' + fields
                + b'GET /3 HTTP/1.0' + kept + b'GET /4 HTTP/1.0' + kept + b'GET /5 HTTP/1.1' + kept)
    first, second, third, fourth = [reader.next_request() for _ in range(4)]
    assert first.headers == second.headers == ((b'host', b'h'), (b'accept', b'*/*'))
    assert (third.minor, third.headers) == (0, fourth.headers) and fourth.keep_alive
    with pytest.raises(http1.ProtocolError):  # what 1.0 may, 1.1 may not: there is no Host
        reader.next_request()
    reader = http1.RequestReader()
    reader.feed(b'GET /1 HTTP/1.1' + fields + b'GET /2 HTTP/1.0' + fields + GET)
    assert reader.next_request().keep_alive and not reader.next_request().keep_alive


def test_what_one_connection_knows_passes_no_limit_of_another():
    data = head(b'GET / HTTP/1.1', *[b'X: y'] * 5)
    assert len(read(data).headers) == 6
    assert len(read(data, max_fields=6, max_head=len(data)).headers) == 6
    assert refusal(data, max_fields=5).status == 431
    assert refusal(data, max_head=len(data) - 1).status == 431


def test_what_is_remembered_is_bounded():
    for number in range(3000):
        read(head(b'GET / HTTP/1.1', b'X: %d' % number))
        read(head(b'GET / HTTP/1.1', b'X: %d' % number + b'y' * 1000))
    for known in http1._KNOWN, http1._KNOWN_REQUESTS:
        assert 0 < len(known) <= 256
        assert max(map(len, known)) <= 192


def test_a_request_that_comes_again_is_the_same_however_it_is_cut_and_whatever_is_beside_it():
    data = head(b'GET /again HTTP/1.1', b'Accept: */*')
    seen = []
    for pieces in ([data], [data], [data[:9], data[9:]], [data + data], [data + GET[:1]]):
        reader = http1.RequestReader()
        for piece in pieces:
            reader.feed(piece)
        request = reader.next_request()
        seen.append((request.method, request.target, request.minor, request.headers, request.body,
                     request.keep_alive))
    assert seen.count(seen[0]) == len(seen)
    assert reader.stage == 'head'


def test_requests_that_came_together_are_not_one_when_they_come_together_again():
    other = head(b'GET /other HTTP/1.1')
    for _ in range(3):
        reader = http1.RequestReader()
        reader.feed(GET + other)
        assert [reader.next_request().target for _ in range(2)] == [b'/latest/meta-data', b'/other']
        assert reader.next_request() is None


def test_a_last_request_that_comes_again_is_the_last_again():
    for _ in range(2):
        reader = http1.RequestReader()
        reader.feed(head(b'GET /last HTTP/1.1', b'Connection: close'))
        assert not reader.next_request().keep_alive
        reader.feed(GET)
        assert reader.next_request() is None


def test_what_is_remembered_holds_for_what_is_alike_to_the_last_byte():
    fields = b'\r\nHost: h\r\nX: y'
    for _ in range(2):
        assert read(b'GET / HTTP/1.1' + fields + b'\r\n\r\n').headers[1] == (b'x', b'y')
        assert read(b'GET / HTTP/1.1' + fields + b'\r\n') is None
        assert read(b'GET / HTTP/1.1\r\n') is None
        assert read(b'PUT / HTTP/1.1' + fields + b' \r\nContent-Length: 1\r\n\r\na').body == b'a'
        assert refusal(b'GET / HTTP/1.1' + fields + b'\x00\r\n\r\n').status == 400
        assert refusal(b'GET / HTTP/1.2' + fields + b'\r\n\r\n').status == 505


def test_a_body_is_never_remembered():
    reader = http1.RequestReader()
    put = head(b'PUT / HTTP/1.1', b'Content-Length: 1')
    reader.feed(put + b'a' + put + b'b' + GET + GET + put + b'c')
    assert [reader.next_request().body for _ in range(5)] == [b'a', b'b', b'', b'', b'c']


def test_a_bad_request_does_not_touch_the_good_one_before_it():
    reader = http1.RequestReader()
    reader.feed(GET + b'garbage\r\n\r\n' + GET)
    assert reader.next_request().target == b'/latest/meta-data'
    for _ in range(2):
        with pytest.raises(http1.ProtocolError) as caught:
            reader.next_request()
        assert caught.value.status == 400
        reader.feed(GET)


def test_the_stage_tells_what_is_awaited():
    reader = http1.RequestReader()
    stages = [(reader.stage, reader.idle)]
    for piece in (b'P', b'UT / HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\n', b'a', b'b'):
        reader.feed(piece)
        request = reader.next_request()
        stages.append((reader.stage, reader.idle))
    assert request.body == b'ab'
    assert stages == [('idle', True), ('head', False), ('body', False), ('body', False),
                      ('idle', True)]


def test_a_guest_that_waits_for_continue_is_told_once():
    reader = http1.RequestReader()
    reader.feed(head(b'PUT / HTTP/1.1', b'Content-Length: 2', b'Expect: 100-Continue'))
    assert not reader.expects_continue()
    assert reader.next_request() is None
    assert reader.expects_continue()
    assert not reader.expects_continue()
    reader.feed(b'ab')
    assert reader.next_request().body == b'ab'
    assert not reader.expects_continue()


@pytest.mark.parametrize('data', [
    head(b'PUT / HTTP/1.1', b'Content-Length: 2', b'Expect: 100-continue') + b'ab',
    head(b'PUT / HTTP/1.0', b'Content-Length: 2', b'Expect: 100-continue'),
    head(b'PUT / HTTP/1.1', b'Content-Length: 0', b'Expect: 100-continue'),
    head(b'GET / HTTP/1.1', b'Expect: 100-continue'),
    head(b'PUT / HTTP/1.1', b'Content-Length: 2', b'Expect: something'),
])
def test_nobody_else_is_told_to_continue(data):
    reader = http1.RequestReader()
    reader.feed(data)
    reader.next_request()
    assert not reader.expects_continue()


def test_the_next_request_has_an_expectation_of_its_own():
    reader = http1.RequestReader()
    first = head(b'PUT / HTTP/1.1', b'Content-Length: 2', b'Expect: 100-continue')
    reader.feed(first + b'ab' + head(b'PUT / HTTP/1.1', b'Content-Length: 2'))
    assert reader.next_request().body == b'ab'
    assert reader.next_request() is None
    assert not reader.expects_continue()


def test_a_reason_never_holds_the_guests_bytes():
    for data in (b'EVIL / HTTP/1.1\r\n\r\n', head(b'GET EVIL HTTP/1.1'),
                 head(b'GET / HTTP/1.1', b'EVIL'),
                 head(b'GET / HTTP/1.1', b'Content-Length: EVIL')):
        error = refusal(data)
        assert 'EVIL' not in str(error) and isinstance(error.reason, str)
