"""The link between a proxy and an agent on another machine: every request signed, or not believed.

Rules kept:

- What is signed is all that the agent acts on: who asks (router or network, guest, its MAC address
  where it is told), when, and the method, target, Content-Type and body that go to nova. What is not
  signed is not used.
- Stale, altered or missing: 403, and the log says which. The one secret of the link is
  not nova's, so that a network node that is broken into cannot sign instance ids.
- A signature tells who speaks and hides nothing. Who can read the network reads the answers too,
  and can ask again what he saw for as long as the window lasts; a network that is not trusted so
  far needs a tunnel.

Signed with HMAC-SHA256: the words below, parted by line feeds, which none of them can hold.
"""
import hashlib
import hmac
import time

from .trust import TrustError, same

_TIME, _SIGNATURE = b'X-Mdproxy-Time', b'X-Mdproxy-Signature'
_VERSION = b'mdproxy-link-1'


class Link(object):
    """Signs and checks with one secret.

    secret: native str. window: seconds that the two clocks, and the way, may be apart. clock: gives
    seconds of Unix time. ValueError for an empty secret.
    """

    def __init__(self, secret, window, clock=time.time):
        if not secret:
            raise ValueError('link_secret is empty')
        key = secret if isinstance(secret, bytes) else secret.encode('utf-8')
        self._key = hmac.new(key, digestmod=hashlib.sha256)
        self._window, self._clock = window, clock

    def headers(self, identity, guest_ip, request, mac=None):
        """The two fields to add, a list of (name, value) in bytes, for a request that is sent now
        for the guest at this address (native str; mac as in trust.agent_headers) behind a
        trust.Identity."""
        now = b'%d' % self._clock()
        return [(_TIME, now), (_SIGNATURE, self._sign(identity, guest_ip, mac, request, now))]

    def check(self, identity, guest_ip, request, mac=None):
        """Raise TrustError with status 403 unless whoever has the secret sent this just now."""
        sent_at = request.header(b'x-mdproxy-time')
        signature = request.header(b'x-mdproxy-signature')
        if sent_at is None or signature is None:
            raise TrustError(403, 'X-Mdproxy-Signature', 'missing: this agent believes signed '
                             'requests alone; does the proxy have link_secret?')
        if not same(self._sign(identity, guest_ip, mac, request, sent_at), signature):
            raise TrustError(403, 'X-Mdproxy-Signature', 'wrong: altered on its way, or link_secret '
                             'is not the same on both sides')
        late = self._clock() - int(sent_at)     # digits: it was signed
        if abs(late) > self._window:
            raise TrustError(403, 'X-Mdproxy-Time', '%d s %s: sent again by somebody, or the clocks differ'
                             % (abs(late), 'old' if late > 0 else 'ahead'))

    def _sign(self, identity, guest_ip, mac, request, now):
        guest = '%s %s' % (guest_ip, mac) if mac else guest_ip
        words = [_VERSION, identity.kind.encode('ascii'), identity.id.encode('ascii'),
                 guest.encode('ascii'), now, request.method, request.target]
        if request.body:
            words += [request.header(b'content-type') or b'',
                      hashlib.sha256(request.body).hexdigest().encode('ascii')]
        signature = self._key.copy()
        signature.update(b'\n'.join(words))
        return signature.hexdigest().encode('ascii')
