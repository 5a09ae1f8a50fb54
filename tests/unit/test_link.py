"""The link to agents on other machines: what is not signed just now is not believed."""
import pytest

from mdproxy import http1, link, trust

ROUTER = trust.Identity('router', '7f0f5cd4-5f0b-4f6c-9d0e-0a1b2c3d4e5f')
NOW = 1700000000.9
MAC = 'fa:16:3e:00:00:01'


def sent(method=b'GET', target=b'/latest/', body=b'', content_type=None, headers=()):
    """A request as the agent reads it."""
    fields = [(name.lower(), value) for name, value in headers]
    if content_type:
        fields.append((b'content-type', content_type))
    return http1.Request(method, target, 1, fields, body, True)


def signed(request, identity=ROUTER, guest='10.0.0.3', secret='link secret', at=NOW, mac=None):
    request.headers += [(name.lower(), value) for name, value in
                        link.Link(secret, 60.0, lambda: at).headers(identity, guest, request, mac)]
    return request


def refusal(request, identity=ROUTER, guest='10.0.0.3', at=NOW, mac=None):
    with pytest.raises(trust.TrustError) as caught:
        link.Link('link secret', 60.0, lambda: at).check(identity, guest, request, mac)
    assert caught.value.status == 403
    return str(caught.value)


def believed(request, identity=ROUTER, guest='10.0.0.3', at=NOW, mac=None):
    link.Link('link secret', 60.0, lambda: at).check(identity, guest, request, mac)
    return True


@pytest.mark.parametrize('request_', [
    sent(), sent(b'POST', b'/openstack/latest/password', b'secret', b'text/plain'), sent(b'HEAD'),
    sent(b'POST', b'/', b'\x00\xff\n', None)])
def test_what_was_signed_is_believed(request_):
    assert believed(signed(request_))


@pytest.mark.parametrize('altered', [
    dict(identity=trust.Identity('network', ROUTER.id)),
    dict(identity=trust.Identity('router', '11111111-2222-3333-4444-555555555555')),
    dict(guest='10.0.0.4')])
def test_another_sender_is_not_believed(altered):
    assert 'wrong' in refusal(signed(sent()), **altered)


@pytest.mark.parametrize('told, heard', [
    (MAC, 'fa:16:3e:00:00:02'), (MAC, None), (None, MAC)])
def test_a_mac_address_is_believed_as_it_was_signed(told, heard):
    request = signed(sent(), guest='fe80::3', mac=told)
    assert believed(request, guest='fe80::3', mac=told)
    assert 'wrong' in refusal(request, guest='fe80::3', mac=heard)


@pytest.mark.parametrize('change', [
    dict(method=b'PUT'), dict(target=b'/latest'), dict(body=b'other'), dict(body=b''),
    dict(content_type=b'text/html'), dict(content_type=None)])
def test_another_request_is_not_believed(change):
    original = dict(method=b'POST', target=b'/latest/', body=b'body', content_type=b'text/plain')
    fields = [field for field in signed(sent(**original)).headers if field[0].startswith(b'x-')]
    assert believed(sent(headers=fields, **original))
    assert 'wrong' in refusal(sent(headers=fields, **dict(original, **change)))


@pytest.mark.parametrize('secret', ['link secre', 'link secret ', 'other'])
def test_another_secret_is_not_believed(secret):
    assert 'link_secret' in refusal(signed(sent(), secret=secret))


@pytest.mark.parametrize('late, word', [(61.2, 'old'), (-61.2, 'ahead'), (1e6, 'old')])
def test_a_request_of_another_time_is_not_believed(late, word):
    assert word in refusal(signed(sent()), at=NOW + late)
    assert believed(signed(sent()), at=NOW + 59) and believed(signed(sent()), at=NOW - 59)


@pytest.mark.parametrize('index', [0, 1])
def test_a_time_of_the_senders_choice_is_not_believed(index):
    request = signed(sent())
    name, value = request.headers[index]
    for forged in (b'', b'x', b'0', value + b'0', value[:-1], value * 2, b'\xff', b'1e9', b'-1'):
        request.headers[index] = (name, forged)
        assert 'wrong' in refusal(request)


def test_missing_or_repeated_fields_are_not_believed():
    assert 'missing' in refusal(sent())
    for index in (0, 1):
        request = signed(sent())
        request.headers.append(request.headers[index])
        assert 'missing' in refusal(request)
        del request.headers[2], request.headers[index]
        assert 'missing' in refusal(request)


def test_words_cannot_be_shifted_into_each_other():
    first = signed(sent(target=b'/a'), guest='10.0.0.3')
    assert 'wrong' in refusal(sent(target=b'/', headers=first.headers), guest='10.0.0.3')
    assert 'wrong' in refusal(sent(b'GET', b'/a', headers=first.headers), guest='10.0.0.31')


def test_an_empty_secret_makes_no_link():
    with pytest.raises(ValueError):
        link.Link('', 60.0)
