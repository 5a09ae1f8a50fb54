"""Promises about all bytes, checked on bytes that hypothesis makes up, with h11 as the oracle.

Deliberate differences between what we accept and what h11 makes of it:

1. Absolute-form targets with our address: we give the path, h11 the target as sent.
2. HTTP/1.0 with Connection: keep-alive: we keep the connection, h11 never does.
3. h11 gives the value of Transfer-Encoding in lower case.

In the other direction there is no promise: h11 accepts bare line feeds, underscores, other methods
and larger heads. MDPROXY_EXAMPLES=100000 in the environment makes a long fuzz run of this file.
"""
import os

import pytest

from mdproxy import http1

hypothesis = pytest.importorskip('hypothesis')
st = pytest.importorskip('hypothesis.strategies')

EXAMPLES = int(os.environ.get('MDPROXY_EXAMPLES', '300'))
LIMITS = {'max_head': 400, 'max_fields': 8, 'max_body': 60}  # small enough to be hit
OURS = (b'http://169.254.169.254:80', b'HTTP://169.254.169.254')


def prop(**strategies):
    """A test of EXAMPLES examples; slow machines and large examples are no failure."""
    def decorate(test):
        test = hypothesis.given(**strategies)(test)
        return hypothesis.settings(
            max_examples=EXAMPLES, deadline=None, database=None,
            suppress_health_check=[hypothesis.HealthCheck.too_slow,
                                   hypothesis.HealthCheck.data_too_large])(test)
    return decorate


small = st.integers(0, 70).map(lambda n: b'%d' % n)
targets = st.one_of(
    st.sampled_from([b'/', b'/latest/meta-data?a=b#c', b'//x', b'/%00', OURS[0] + b'/a', OURS[1]]),
    st.text(alphabet='!"#%/:?@[\\^_`{|}~aZ9', max_size=5).map(lambda t: b'/' + t.encode('ascii')))
fields = st.sampled_from([
    b'Accept: */*', b'X-A:b', b'x-a: \t c \t', b'Empty:', b'Connection: close', b'TE: trailers',
    b'Connection: Keep-Alive', b'connection: te, x-a', b'Expect: 100-continue', b'Upgrade: h2c',
    b'Content-Type: a/b; c="d:e"', b'A: \xe9\xff', b"!#$%&'*+-.^`|~09aZ: token"])
# What goes into a well-formed stream to break it, or to give it another meaning.
nasty = st.one_of(
    st.sampled_from([
        b'\r\n', b'\n', b'\r', b'\r\n\r\n', b'\n\n', b'\r\n ', b' ', b'\t', b':', b'_', b'\x00',
        b'0', b'\x7f', b'\xff', b'1', b';', b',', b'\r\nHost: other',
        b'\r\nTransfer-Encoding: chunked', b'\r\nTransfer-encoding:Chunked ',
        b'\r\nTransfer-Encoding: gzip', b'\r\nContent-Length: 3',
        b'\r\nContent-Length: 1, 1', b'\r\nContent-Length: +1', b'\r\nContent-Length: 007',
        b'\r\nContent-Length: 99999999999', b'\r\nX_A: b', b'\r\n: b', b'\r\nX-A : b', b'\r\nnone',
        b'\r\nA: \x0b', b'\r\n\xe9: a', b'0\r\n\r\n', b'ffffffff\r\n', b'http://evil',
        b'GET / HTTP/1.1', b'HTTP/1.0', b'HTTP/1.2', b'DELETE', b'x' * 300]),
    small.map(lambda value: b'\r\nContent-Length: ' + value),
    st.binary(max_size=4))


@st.composite
def chunked(draw):
    """A chunked body with extensions, odd sizes and trailers; sometimes too long."""
    out = b''
    for data in draw(st.lists(st.binary(min_size=1, max_size=25), max_size=3)):
        size = draw(st.sampled_from([b'%x', b'%X', b'00%x', b'%x;a=b', b'%x;c="\xe9 ;"']))
        out += size % len(data) + b'\r\n' + data + b'\r\n'
    trailer = draw(st.sampled_from([b'', b'', b'A: b\r\n', b'A: b\r\nC:\r\n']))
    return out + draw(st.sampled_from([b'0', b'000', b'0;e'])) + b'\r\n' + trailer + b'\r\n'


@st.composite
def requests(draw):
    """A well-formed request, within the limits but for some bodies."""
    method = draw(st.sampled_from(http1.METHODS))
    minor = draw(st.sampled_from([b'1', b'1', b'1', b'0']))
    lines = [b'Host: h'] + draw(st.lists(fields, max_size=3))
    body = draw(st.sampled_from(['none', 'length', 'chunked']))
    content = b''
    if body == 'length':
        content = draw(st.binary(max_size=65))
        lines.append(b'Content-Length: %d' % len(content))
    elif body == 'chunked' and minor == b'1':
        content = draw(chunked())
        lines.append(b'Transfer-Encoding: ' + draw(st.sampled_from([b'chunked', b'Chunked'])))
    first = b'%s %s HTTP/1.%s' % (method, draw(targets), minor)
    return b'\r\n'.join([first] + draw(st.permutations(lines))) + b'\r\n\r\n' + content


@st.composite
def mangled(draw, originals):
    """An original with up to two places where bytes were taken out and something nasty put in."""
    data = draw(originals)
    for _ in range(draw(st.integers(0, 2))):
        place = draw(st.integers(0, len(data)))
        data = data[:place] + draw(nasty) + data[place + draw(st.integers(0, 4)):]
    return data


pipelines = st.lists(requests(), min_size=1, max_size=3).map(b''.join)
streams = st.one_of(pipelines, mangled(requests()), mangled(pipelines), st.binary(max_size=40),
                    st.lists(nasty, max_size=12).map(b''.join))
cuts = st.lists(st.integers(0, 1000), max_size=12)


def cut(data, places):
    """The stream in pieces; every place is taken modulo the stream's length."""
    edges = [0] + sorted(place % (len(data) + 1) for place in places) + [len(data)]
    return [data[a:b] for a, b in zip(edges, edges[1:])]  # noqa: B905


def outcome(pieces, limits=LIMITS):
    """All that a server learns from a stream: its requests, and the error or the final stage."""
    reader = http1.RequestReader(**limits)
    seen = []
    for piece in pieces:
        reader.feed(piece)
        while True:
            try:
                request = reader.next_request()
            except http1.ProtocolError as error:
                seen.append((error.status, error.reason))
                return seen
            if request is None:
                break
            seen.append((request.method, request.target, request.minor, request.headers,
                         request.body, request.keep_alive))
    return seen + [reader.stage]


@prop(data=streams, places=cuts)
def test_any_cut_of_the_bytes_gives_the_same_outcome(data, places):
    whole = outcome([data])
    assert outcome(cut(data, places)) == whole
    assert outcome([data[i:i + 1] for i in range(len(data))]) == whole


@prop(data=streams)
def test_any_bytes_are_requests_or_one_protocol_error(data):
    for item in outcome([data]):
        if item in ('idle', 'head', 'body'):
            continue
        if len(item) == 2:
            assert item[0] in (400, 405, 413, 431, 501, 505)
            continue
        method, path, minor, headers, body, _ = item
        assert method in http1.METHODS and path.startswith(b'/') and minor in (0, 1)
        assert len(headers) <= LIMITS['max_fields'] and len(body) <= LIMITS['max_body']
        for name, value in headers:
            assert name == name.lower() and b'_' not in name and value == value.strip(b' \t')
            assert not set(bytearray(name + value)) & set(bytearray(b'\r\n\x00'))


def by_h11(h11, data):
    """The requests that h11 reads from a stream, as outcome() gives them."""
    server = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    server.receive_data(data)
    seen = []
    while True:
        try:
            event = server.next_event()
        except h11.RemoteProtocolError:
            return seen
        if type(event) is h11.Request:
            request, body = event, b''
        elif type(event) is h11.Data:
            body += bytes(event.data)
        elif type(event) is h11.EndOfMessage:
            server.send(h11.Response(status_code=204, headers=[]))
            server.send(h11.EndOfMessage())
            keep = server.our_state is h11.DONE
            seen.append((request.method, request.target, int(request.http_version[-1:]),
                         [tuple(header) for header in request.headers], body, keep))
            if not keep:
                return seen
            server.start_next_cycle()
        else:
            return seen


def path_of(target):
    for prefix in OURS:
        if target.startswith(prefix):
            return target[len(prefix):] or b'/'
    return target


def check_meaning(ours, theirs):
    """Fails if a request of ours, as outcome() gives them, is not the same to h11."""
    for number, mine in enumerate(ours):
        assert len(theirs) > number, 'h11 refuses %r' % (mine,)
        method, target, minor, headers, body, keep = theirs[number]
        assert mine[0] == method
        assert mine[1] == path_of(target)  # difference 1
        assert mine[2] == minor
        assert [(name, value.lower() if name == b'transfer-encoding' else value)
                for name, value in mine[3]] == headers  # difference 3
        assert mine[4] == body
        if not minor:
            break  # difference 2
        assert mine[5] == keep


@prop(data=streams)
def test_what_we_accept_h11_accepts_with_the_same_meaning(data):
    h11 = pytest.importorskip('h11')
    theirs = by_h11(h11, data)
    check_meaning([item for item in outcome([data]) if len(item) == 6], theirs)


# Responses

upstream_fields = st.sampled_from([
    b'Content-Type: a/b', b'X-Odd_Name: \xff', b'Connection: close', b'Connection: x-hop',
    b'X-Hop: 1', b'Keep-Alive: timeout=5', b'Trailer: Digest', b'Set-Cookie: a', b'ETag: "x"',
    b'Connection: Keep-Alive', b'X-A:b', b'X-A: \t c ', b'Empty:', b'TEX: a', b'X-te: b'])


@st.composite
def exchanges(draw):
    """A guest's request and a well-formed response to it: (Request, bytes, body, ends by close)."""
    method = draw(st.sampled_from([b'GET', b'HEAD', b'POST']))
    request = http1.Request(method, b'/', draw(st.integers(0, 1)), [], b'', draw(st.booleans()))
    status = draw(st.sampled_from([200, 204, 304, 404, 500]))
    body = b'' if method == b'HEAD' or status in (204, 304) else draw(st.binary(max_size=80))
    lines = draw(st.lists(upstream_fields, max_size=3))
    framing = draw(st.sampled_from(['length', 'chunked', 'close']))
    content = body
    if framing == 'length' and status != 204:
        lines.append(b'Content-Length: %d' % len(body))
    elif framing == 'chunked':
        lines.append(b'Transfer-Encoding: chunked')
        if method != b'HEAD' and status not in (204, 304):
            content = b''.join(b'%x;e\r\n%s\r\n' % (len(piece), piece)
                               for piece in cut(body, draw(cuts)) if piece) + b'0\r\nA: b\r\n\r\n'
    minor = 1 if framing == 'chunked' else draw(st.sampled_from([0, 1]))
    reason = draw(st.sampled_from([b' OK', b' OK', b' Odd one ', b' ', b'']))
    head = b'HTTP/1.%d %d%s\r\n' % (minor, status, reason)
    head += b''.join(line + b'\r\n' for line in draw(st.permutations(lines))) + b'\r\n'
    return request, head + content, body, framing == 'close'


def relay(request, pieces, close):
    """What the guest gets of a response, whether its connection is closed, and ResponseHead."""
    reader = http1.ResponseReader()
    reader.expect(request.method)
    events = [event for piece in pieces for event in reader.feed(piece)]
    if close and events[-1][0] != http1.END:
        events += reader.eof()
    assert [kind for kind, _ in events].count(http1.END) == 1 and events[-1][0] == http1.END
    writer = http1.ResponseWriter(request)
    out = writer.head(events[0][1])
    out += b''.join(writer.body(value) for kind, value in events if kind == http1.BODY)
    return out + writer.end(), writer.close, events


def answer(request, pieces, max_head=65536):
    """All that a server learns from upstream's bytes, then closed, and what a guest gets of them.

    Of what goes wrong only the reason: how much came before depends on the cut.
    """
    reader = http1.ResponseReader(max_head)
    reader.expect(request.method)
    writer = http1.ResponseWriter(request)
    body = b''
    try:
        for piece in pieces + [None]:
            for kind, value in reader.eof() if piece is None else reader.feed(piece):
                if kind == http1.HEAD:
                    head = value
                    out = writer.head(value)
                elif kind == http1.BODY:
                    body += value
                else:  # in one chunk, if it goes chunked: of how many it is depends on the cut
                    out += writer.body(body) + writer.end()
                    return (head.status, head.reason, head.minor, head.headers, body, out,
                            writer.close)
    except http1.ProtocolError as error:
        return error.status, error.reason


@prop(exchange=exchanges(), places=cuts)
def test_a_response_passes_unharmed_however_it_was_cut(exchange, places):
    request, data, body, close = exchange
    events = relay(request, cut(data, places), close)[2]
    assert b''.join(value for kind, value in events if kind == http1.BODY) == body
    assert answer(request, cut(data, places)) == answer(request, [data])


@prop(exchange=exchanges(), edits=st.lists(st.tuples(st.integers(0, 200), nasty), max_size=2),
      places=cuts, max_head=st.sampled_from([60, 100, 300]))
def test_any_cut_of_upstreams_bytes_gives_the_same_answer(exchange, edits, places, max_head):
    request, data = exchange[:2]
    for place, insert in edits:
        data = data[:place] + insert + data[place + len(insert) // 2:]
    whole = answer(request, [data], max_head)
    assert answer(request, cut(data, places), max_head) == whole
    assert answer(request, [data[i:i + 1] for i in range(len(data))], max_head) == whole


def check_guest_reads(h11, method, out, closed, status, body):
    """Fails if h11 as the guest does not take these bytes for one answer, and all of it."""
    guest = h11.Connection(h11.CLIENT, max_incomplete_event_size=1 << 20)
    guest.send(h11.Request(method=method, target=b'/', headers=[('Host', 'h')]))
    guest.send(h11.EndOfMessage())
    guest.receive_data(out)
    if closed:
        guest.receive_data(b'')
    head, got = guest.next_event(), b''
    while True:
        event = guest.next_event()
        if type(event) is h11.EndOfMessage:
            break
        got += bytes(event.data)
    assert (head.status_code, got) == (status, body)
    assert closed or guest.trailing_data == (b'', False)
    assert (guest.their_state is h11.MUST_CLOSE or guest.their_state is h11.CLOSED) == closed


@prop(exchange=exchanges(), places=cuts)
def test_a_guest_reads_the_response_as_upstream_meant_it(exchange, places):
    h11 = pytest.importorskip('h11')
    request, data, body, close = exchange
    out, closed, events = relay(request, cut(data, places), close)
    check_guest_reads(h11, request.method, out, closed, events[0][1].status, body)


@prop(exchange=exchanges(), edits=st.lists(st.tuples(st.integers(0, 200), nasty), max_size=2),
      places=cuts)
def test_any_bytes_from_upstream_are_events_or_a_bad_gateway(exchange, edits, places):
    request, data = exchange[:2]
    for place, insert in edits:
        data = data[:place] + insert + data[place + len(insert) // 2:]
    reader = http1.ResponseReader(max_head=300)
    reader.expect(request.method)
    kinds = []
    try:
        for piece in cut(data, places):
            kinds += [kind for kind, _ in reader.feed(piece)]
        kinds += [kind for kind, _ in reader.eof()]
    except http1.ProtocolError as error:
        assert error.status == 502
    assert kinds[:1] in ([], [http1.HEAD]) and kinds.count(http1.END) <= 1
    assert http1.END not in kinds[:-1]
