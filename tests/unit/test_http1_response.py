"""What upstream sends, and what reaches the guest of it."""
import time

import pytest

from mdproxy import http1
from mdproxy.http1 import BODY, END, HEAD


def request(method=b'GET', minor=1, keep_alive=True):
    return http1.Request(method, b'/', minor, [], b'', keep_alive)


def response(line=b'HTTP/1.1 200 OK', *fields):
    return b'\r\n'.join((line,) + fields) + b'\r\n\r\n'


def read(data, method=b'GET'):
    reader = http1.ResponseReader()
    reader.expect(method)
    return reader, reader.feed(data)


def kinds(events):
    return [kind for kind, _ in events]


def body_of(events):
    return b''.join(value for kind, value in events if kind == BODY)


# ResponseReader

def test_a_response_in_one_piece_is_three_events():
    reader, events = read(response(b'HTTP/1.1 200 Fine', b'X-Odd_Name:  a b ', b'Content-Length: 3')
                          + b'abc')
    assert kinds(events) == [HEAD, BODY, END]
    head = events[0][1]
    assert (head.status, head.reason, head.minor) == (200, b'Fine', 1)
    assert head.headers == [(b'X-Odd_Name', b'a b'), (b'Content-Length', b'3')]
    assert events[1:] == [(BODY, b'abc'), (END, None)]
    assert reader.keep_alive


def test_pieces_of_a_body_come_as_they_arrive():
    reader, events = read(response(b'HTTP/1.1 200 OK', b'Content-Length: 5') + b'ab')
    assert kinds(events) == [HEAD, BODY]
    assert reader.feed(b'cd') == [(BODY, b'cd')]
    assert not reader.keep_alive
    assert reader.feed(b'e') == [(BODY, b'e'), (END, None)]
    assert reader.keep_alive


def test_a_chunked_body_is_decoded_and_its_trailers_are_forgotten():
    data = response(b'HTTP/1.1 200 OK', b'Transfer-Encoding: chunked') + \
        b'3;x\r\nabc\r\n2\r\n\x00\xff\r\n0\r\nDigest: x\r\n\r\n'
    reader, events = read(data)
    assert (kinds(events), body_of(events)) == ([HEAD, BODY, END], b'abc\x00\xff')
    assert reader.keep_alive


def test_a_large_chunk_is_not_held_back_until_it_is_complete():
    reader, _ = read(response(b'HTTP/1.1 200 OK', b'Transfer-Encoding: chunked') + b'fffff\r\n')
    assert reader.feed(b'x' * 1000) == [(BODY, b'x' * 1000)]


def test_a_body_without_framing_ends_when_the_connection_does():
    reader, events = read(response(b'HTTP/1.0 200 OK') + b'ab')
    assert kinds(events) == [HEAD, BODY]
    assert reader.feed(b'c') == [(BODY, b'c')]
    assert reader.eof() == [(END, None)]
    assert not reader.keep_alive


@pytest.mark.parametrize('method, line, fields', [
    (b'HEAD', b'HTTP/1.1 200 OK', (b'Content-Length: 10',)),
    (b'HEAD', b'HTTP/1.1 200 OK', (b'Transfer-Encoding: chunked',)),
    (b'HEAD', b'HTTP/1.1 200 OK', ()),
    (b'GET', b'HTTP/1.1 204 No Content', ()),
    (b'GET', b'HTTP/1.1 304 Not Modified', (b'Content-Length: 10',)),
    (b'GET', b'HTTP/1.1 200 OK', (b'Content-Length: 0',)),
])
def test_some_responses_have_no_body_whatever_they_say(method, line, fields):
    reader, events = read(response(line, *fields), method)
    assert kinds(events) == [HEAD, END]
    # By rule, not by the sender's word: should it err, the body would be the next one's answer.
    assert reader.keep_alive is (b'Content-Length: 0' in fields)


def test_interim_responses_are_skipped():
    _, events = read(response(b'HTTP/1.1 100 Continue') + response(b'HTTP/1.1 103 Hints', b'A: b')
                     + response(b'HTTP/1.1 204 No Content'))
    assert kinds(events) == [HEAD, END] and events[0][1].status == 204


@pytest.mark.parametrize('line, reason', [(b'HTTP/1.1 200', b''), (b'HTTP/1.1 200 ', b''),
                                          (b'HTTP/1.1 200 a b\t\xc3', b'a b\t\xc3')])
def test_a_reason_phrase_is_free_text(line, reason):
    assert read(response(line))[1][0][1].reason == reason


@pytest.mark.parametrize('data', [
    b'garbage\r\n\r\n', response(b'HTTP/2.0 200 OK'), response(b'HTTP/1.1 20 OK'),
    response(b'HTTP/1.1 099 OK'), response(b'HTTP/1.1  200 OK'), response(b'HTTP/1.1 2000 OK'),
    response(b'ICY 200 OK'), response(b'HTTP/1.1 101 Switching', b'Upgrade: x'),
    b'HTTP/1.1 200 OK\n\n', b'HTTP/1.1 200 OK\r\nA: b\nC: d\r\n\r\n',
    response(b'HTTP/1.1 200 OK', b'A : b'), response(b'HTTP/1.1 200 OK', b' folded'),
    response(b'HTTP/1.1 200 OK', b'A: b\rc'), response(b'HTTP/1.1 200 OK', b'A: b\x00'),
    response(b'HTTP/1.1 200 OK', b'Content-Length: 1', b'Content-Length: 1'),
    response(b'HTTP/1.1 200 OK', b'Content-Length: -1'),
    response(b'HTTP/1.1 200 OK', b'Content-Length: 1', b'Transfer-Encoding: chunked'),
    response(b'HTTP/1.1 200 OK', b'Transfer-Encoding: gzip, chunked'),
    response(b'HTTP/1.0 200 OK', b'Transfer-Encoding: chunked'),
    response(b'HTTP/1.1 200 OK', b'Transfer-Encoding: chunked') + b'x\r\n',
    response(b'HTTP/1.1 200 OK', b'A: ' + b'b' * 65536),
])
def test_what_cannot_be_passed_on_is_a_bad_gateway_and_stays_one(data):
    reader = http1.ResponseReader()
    reader.expect(b'GET')
    for call in (lambda: reader.feed(data), lambda: reader.feed(b'x'), reader.eof):
        with pytest.raises(http1.ProtocolError) as caught:
            call()
        assert caught.value.status == 502
    assert not reader.keep_alive


@pytest.mark.parametrize('data, started', [
    (b'', False), (b'H', True), (response(b'HTTP/1.1 200 OK', b'Content-Length: 2') + b'a', True),
    (response(b'HTTP/1.1 200 OK', b'Transfer-Encoding: chunked') + b'1\r\na\r\n', True),
    (response(b'HTTP/1.1 200 OK', b'Transfer-Encoding: chunked') + b'0\r\n', True),
    (response(b'HTTP/1.1 100 Continue'), True),
])
def test_a_response_that_is_cut_short_is_a_bad_gateway(data, started):
    reader, _ = read(data)
    assert reader.started is started
    with pytest.raises(http1.ProtocolError) as caught:
        reader.eof()
    assert caught.value.status == 502


def test_started_is_about_the_current_response():
    reader, _ = read(response(b'HTTP/1.1 200 OK', b'Content-Length: 0'))
    assert reader.started
    reader.expect(b'GET')
    assert not reader.started


@pytest.mark.parametrize('line, fields, keep_alive', [
    (b'HTTP/1.1 200 x', (), True), (b'HTTP/1.1 200 x', (b'Connection: Close',), False),
    (b'HTTP/1.1 200 x', (b'Connection: a', b'connection: close'), False),
    (b'HTTP/1.0 200 x', (), False), (b'HTTP/1.0 200 x', (b'Connection: Keep-Alive',), True),
])
def test_the_connection_is_kept_as_version_and_options_say(line, fields, keep_alive):
    assert read(response(line, b'Content-Length: 0', *fields))[0].keep_alive is keep_alive


def test_a_connection_with_stray_bytes_is_not_kept():
    reader, events = read(response(b'HTTP/1.1 200 OK', b'Content-Length: 1') + b'abc')
    assert events[1:] == [(BODY, b'a'), (END, None)]
    assert not reader.keep_alive
    with pytest.raises(ValueError):
        reader.expect(b'GET')


def test_bytes_that_nobody_asked_for_are_refused():
    reader, _ = read(response(b'HTTP/1.1 204 No Content'))
    with pytest.raises(http1.ProtocolError):
        reader.feed(b'H')
    assert not reader.keep_alive


def test_an_idle_connection_may_be_closed():
    reader, _ = read(response(b'HTTP/1.1 204 No Content'))
    assert reader.eof() == []
    assert not reader.keep_alive


@pytest.mark.parametrize('fields', [
    (b'Content-Length: 3',),
    (b'Content-Type: text/plain; charset=UTF-8', b'Content-Length: 3', b'Date: today'),
    (b'Server: nginx', b'content-length: 3', b'CONNECTION: Keep-Alive', b'ETag: "a"'),
    (b'Connection: keep-alive', b'Content-Length: 3'),
    (b'Content-Length: 3', b'Connection: keep-alive', b'Connection: keep-alive'),
    (b'Content-Length: 3', b'Connection: keep-alive', b'Connection: close'),
    (b'Content-Length: 3', b'Connection: keep-alive, X-Hop', b'X-Hop: a'),
    (b'Content-Length: 3', b'Keep-Alive: timeout=5'), (b'Content-Length: 3', b'Upgrade: h2c'),
    (b'Content-Length:3',), (b'Content-Length: \t3 ',), (b'Content-Length: 003',),
    (b'Content-Length: 3', b'A:b'), (b'Content-Length: 3', b'C:  d'),
    (b'Content-Length: 3', b'E: f\t'), (b'Content-Length: 3', b'G:'),
    (b'H: ', b'Content-Length: 3'),
    (b'Content-Length: 3', b'Host: a'), (b'Content-Length: 3', b'Content_Length: 9'),
    (b'Content-Length-X: 9', b'Content-Length: 3', b'Teapot: a', b'X-Upgrade: b'),
    (b'Transfer-Encoding: chunked',), (b'A: b', b'transfer-encoding: CHUNKED', b'Connection: x'),
    (b'A: b', b'Transfer-Encoding: chunked', b'C: d', b'Connection: keep-alive', b'E: f'),
])
def test_one_packet_or_many_make_no_difference(fields):
    """What comes whole and usual is read a shorter way, which must lead to the same."""
    coding = b'transfer-encoding' in b'\n'.join(fields).lower()
    data = response(b'HTTP/1.1 200 OK', *fields) + (b'3\r\nabc\r\n0\r\n\r\n' if coding else b'abc')
    seen = []
    for pieces in ([data], [data[:-1], data[-1:]], [data[:20], data[20:]],
                   [data[i:i + 1] for i in range(len(data))]):
        reader = http1.ResponseReader()
        reader.expect(b'GET')
        events = [event for piece in pieces for event in reader.feed(piece)]
        head, writer = events[0][1], http1.ResponseWriter(request())
        seen.append((writer.head(head), head.headers, head.status, body_of(events),
                     kinds(events)[-1], reader.keep_alive))
    assert seen.count(seen[0]) == len(seen)
    assert [name for name, _ in seen[0][1]] == [field.partition(b':')[0] for field in fields]
    assert seen[0][3] == b'abc'


def test_a_head_that_comes_again_excuses_nothing():
    data = response(b'HTTP/1.1 200 OK', b'Date: now', b'Content-Length: 3') + b'abc'

    def events(pieces, method=b'GET', max_head=65536):
        reader = http1.ResponseReader(max_head=max_head)
        reader.expect(method)
        return [event for piece in pieces for event in reader.feed(piece)], reader.keep_alive
    first = events([data])
    for _ in range(2):
        again = events([data])
        assert again[0][0][1].headers == first[0][0][1].headers and again[0][1:] == first[0][1:]
        assert body_of(events([data[:-1], b'c'])[0]) == b'abc' and again[1] and first[1]
        assert not events([data + b'more'])[1]
        assert kinds(events([data[:-3]], b'HEAD')[0]) == [http1.HEAD, http1.END]
        with pytest.raises(http1.ProtocolError):
            events([data], max_head=len(data) - 4)


def test_what_is_remembered_of_heads_is_bounded():
    for number in range(3000):
        for size in (1, 1000):
            read(response(b'HTTP/1.1 200 OK', b'A: %d' % number + b'b' * size, b'Content-Length: 1') + b'c')
    assert 0 < len(http1._KNOWN_RESPONSES) <= 256
    assert max(map(len, http1._KNOWN_RESPONSES)) <= 384


@pytest.mark.parametrize('fields', [
    (b'Content-Length: 3', b'Host: a', b'Host: a'), (b'Content-Length: 3', b'Content-Length: 3'),
    (b'Content-Length: 3', b'Transfer-Encoding: chunked'), (b'Content-Length: 3', b'A : b'),
    (b'Transfer-Encoding: chunked', b'Content-Length: 3'), (b'Content-Length: 3', b'A: b\x00'),
    (b'Content-Length: 3', b'A: b\nC: d'), (b'Content-Length: 3', b' A: b'),
    (b'Content-Length: 3', b': b'), (b'Content-Length: 0x3',), (b'Content-Length: 3, 3',),
    (b'Content-Length: 0000000000000003',),
])
def test_a_usual_beginning_excuses_nothing(fields):
    for others in ((), (b'Date: today',)):
        with pytest.raises(http1.ProtocolError) as caught:
            read(response(b'HTTP/1.1 200 OK', *(others + fields + others)) + b'abc')
        assert caught.value.status == 502


def test_a_head_may_fill_its_limit_and_no_more():
    for field in (b'Content-Length: 1', b'Content-Length:1'):
        data = response(b'HTTP/1.1 200 OK', b'A: ' + b'b' * 50, field)
        for less, accepted in ((0, True), (1, False)):
            reader = http1.ResponseReader(max_head=len(data) - less)
            reader.expect(b'GET')
            if accepted:
                assert kinds(reader.feed(data + b'a')) == [HEAD, BODY, END]
            else:
                with pytest.raises(http1.ProtocolError):
                    reader.feed(data + b'a')


# Of this process alone: what else the machine does must not decide.
cpu_seconds = getattr(time, 'process_time', None) or time.clock


def seconds(data):
    """Best of three for reading a response that comes in one piece."""
    spent = []
    for _ in range(3):
        reader = http1.ResponseReader(max_head=len(data))
        reader.expect(b'GET')
        begin = cpu_seconds()
        try:
            reader.feed(data)
        except http1.ProtocolError:
            pass
        spent.append(cpu_seconds() - begin)
    return min(spent)


@pytest.mark.parametrize('make', [
    lambda size: b'\r\nA: b' * (size // 6),
    lambda size: b'\r\nA: b' * (size // 6) + b'\r\nContent-Length: 0',
    lambda size: b'\r\nContent-Length: 0' + b'\r\nA: b' * (size // 6) + b'\r\n',
    lambda size: b'\r\nContent-Length: 0' + b'\r\nConnection: keep-alive' * (size // 24),
    lambda size: b'\r\nContent-Length: 0' * (size // 19),
    lambda size: b'\r\nA:' + b' ' * size + b'\x00', lambda size: b'\r\nA: ' + b'b ' * (size // 2),
    lambda size: b'\r\nA' * (size // 3), lambda size: b'\r\n' + b'a' * size,
    lambda size: b'\r\nTransfer-Encoding: chunked' * (size // 28),
    lambda size: b' ' * size + b'\x00',
])
def test_four_times_the_head_is_not_sixteen_times_the_work(make):
    size = 65536
    usual, large = (seconds(b'HTTP/1.1 200 OK' + make(n) + b'\r\n\r\n') for n in (size, 4 * size))
    assert large < 10 * usual + 0.01


def test_many_responses_follow_each_other():
    reader = http1.ResponseReader()
    for size in range(5):
        reader.expect(b'GET')
        head = response(b'HTTP/1.1 200 OK', b'Content-Length: %d' % size)
        events = reader.feed(head + b'x' * size)
        assert body_of(events) == b'x' * size and kinds(events)[-1] == END


# ResponseWriter

def pass_on(asked, upstream, close=False):
    """The guest's bytes for an upstream response in one piece, and whether to close after them."""
    reader = http1.ResponseReader()
    reader.expect(asked.method)
    events = reader.feed(upstream)
    if kinds(events)[-1] != END:
        events += reader.eof()
    writer = http1.ResponseWriter(asked, close)
    out = writer.head(events[0][1]) + writer.body(b'')
    out += b''.join(writer.body(value) for kind, value in events if kind == BODY) + writer.end()
    return out, writer.close


def test_end_to_end_fields_and_body_pass_byte_for_byte():
    upstream = response(b'HTTP/1.1 206 Odd Reason', b'content-TYPE: a/b; c="d"',
                        b'X-Odd_Name: \xff', b'Content-Encoding: gzip', b'Set-Cookie: a',
                        b'Set-Cookie: b', b'Proxy-Authenticate: x',
                        b'Content-Length: 4') + b'\x1f\x8b\x00\n'
    assert pass_on(request(), upstream) == (upstream, False)


@pytest.mark.parametrize('field', [
    b'Connection: keep-alive', b'Keep-Alive: timeout=5', b'Proxy-Connection: close', b'TE: x',
    b'Trailer: Digest', b'Upgrade: h2c', b'Connection: Upgrade, X-Hop'])
def test_hop_by_hop_fields_do_not_pass(field):
    upstream = response(b'HTTP/1.1 200 OK', field, b'Content-Length: 0')
    assert pass_on(request(), upstream)[0] == response(b'HTTP/1.1 200 OK', b'Content-Length: 0')


def test_what_connection_names_does_not_pass_but_the_length_does():
    upstream = response(b'HTTP/1.1 200 OK', b'X-HOP: a', b'X-End: b',
                        b'Connection: x-hop, content-length, close', b'Content-Length: 1') + b'a'
    assert pass_on(request(), upstream)[0] == response(
        b'HTTP/1.1 200 OK', b'X-End: b', b'Content-Length: 1') + b'a'


def test_a_body_of_unknown_length_is_chunked_for_http_1_1():
    for upstream in (response(b'HTTP/1.0 200 OK') + b'0123456789abcdefXYZ',
                     response(b'HTTP/1.1 200 OK', b'Transfer-Encoding: chunked')
                     + b'13\r\n0123456789abcdefXYZ\r\n0\r\n\r\n'):
        assert pass_on(request(), upstream) == (
            response(b'HTTP/1.1 200 OK', b'Transfer-Encoding: chunked')
            + b'13\r\n0123456789abcdefXYZ\r\n0\r\n\r\n', False)


def test_a_body_of_unknown_length_ends_with_the_connection_for_http_1_0():
    upstream = response(b'HTTP/1.1 200 OK', b'Transfer-Encoding: chunked') + b'1\r\na\r\n0\r\n\r\n'
    assert pass_on(request(minor=0), upstream) == (
        response(b'HTTP/1.1 200 OK', b'Connection: close') + b'a', True)


@pytest.mark.parametrize('method, upstream', [
    (b'HEAD', response(b'HTTP/1.1 200 OK', b'Content-Length: 10')),
    (b'HEAD', response(b'HTTP/1.1 200 OK')),
    (b'GET', response(b'HTTP/1.1 204 No Content')),
    (b'GET', response(b'HTTP/1.1 304 Not Modified', b'ETag: "a"', b'Content-Length: 3')),
])
def test_a_response_without_body_gets_none(method, upstream):
    assert pass_on(request(method), upstream) == (upstream, False)


def test_no_content_has_no_length_even_if_upstream_says_so():
    assert pass_on(request(), response(b'HTTP/1.1 204 x', b'Content-Length: 0'))[0] == \
        response(b'HTTP/1.1 204 x')


@pytest.mark.parametrize('asked, close, field, closed', [
    (request(), False, (), False),
    (request(), True, (b'Connection: close',), True),
    (request(keep_alive=False), False, (b'Connection: close',), True),
    (request(minor=0), False, (b'Connection: keep-alive',), False),
    (request(minor=0, keep_alive=False), False, (b'Connection: close',), True),
])
def test_the_guest_is_told_what_becomes_of_its_connection(asked, close, field, closed):
    upstream = response(b'HTTP/1.1 200 OK', b'Content-Length: 0')
    told = response(b'HTTP/1.1 200 OK', b'Content-Length: 0', *field)
    assert pass_on(asked, upstream, close) == (told, closed)


# Messages of our own

def test_a_request_is_written_with_the_headers_given():
    assert http1.format_request(b'GET', b'/a', [(b'Host', b'h'), (b'X-A', b'b')], b'') == \
        b'GET /a HTTP/1.1\r\nHost: h\r\nX-A: b\r\n\r\n'


@pytest.mark.parametrize('method, body, length', [
    (b'POST', b'', b'0'), (b'PUT', b'', b'0'), (b'POST', b'a\x00b', b'3'), (b'GET', b'a', b'1')])
def test_a_request_with_a_body_or_made_for_one_tells_its_length(method, body, length):
    out = http1.format_request(method, b'/', [(b'Host', b'h')], body)
    assert out == (method + b' / HTTP/1.1\r\nHost: h\r\nContent-Length: ' + length + b'\r\n\r\n'
                   + body)


def test_what_is_written_is_read_back():
    reader = http1.RequestReader()
    reader.feed(http1.format_request(b'PUT', b'/p', [(b'Host', b'h')], b'abc'))
    asked = reader.next_request()
    assert (asked.method, asked.target, asked.body) == (b'PUT', b'/p', b'abc')


@pytest.mark.parametrize('status', sorted(http1.REASONS))
@pytest.mark.parametrize('text', [b'no\n', 'no\n', u'\u20ac\n', ''])
def test_our_own_answers_are_responses(status, text):
    out = http1.format_response(status, text, request(), headers=[(b'Retry-After', b'1')])
    reader, events = read(out)
    assert events[0][1].status == status and (b'Retry-After', b'1') in events[0][1].headers
    assert body_of(events) == (text if isinstance(text, bytes) else text.encode('utf-8'))
    assert events[-1] == (END, None) and reader.keep_alive


@pytest.mark.parametrize('asked, close, keep_alive', [
    (request(), False, True), (request(), True, False), (request(keep_alive=False), False, False),
    (request(minor=0), False, True), (None, False, False)])
def test_our_own_answers_tell_what_becomes_of_the_connection(asked, close, keep_alive):
    reader, _ = read(http1.format_response(404, 'no', asked, close))
    assert reader.keep_alive is keep_alive
    if asked and not asked.minor and keep_alive:
        assert b'Connection: keep-alive\r\n' in http1.format_response(404, 'no', asked, close)


def test_our_own_answer_to_head_has_a_length_and_no_body():
    out = http1.format_response(404, 'no', request(b'HEAD'))
    assert b'Content-Length: 2\r\n' in out and out.endswith(b'\r\n\r\n')


def test_an_interim_response_is_ready_made():
    assert read(http1.CONTINUE)[1] == []
