"""Keystone's tokens, checkable by the port API without asking Keystone.

A token is `<expiry>.<tenant>.<nonce>.<mac>`: milliseconds since the epoch in hex, the tenant's id
(empty in an unscoped token), 16 random bytes in hex, and the hex HMAC-SHA256 of what stands before
it, under the key in `token.key` beside the state file. Only Keystone makes the key; while it is
missing, no token is valid.
"""
import hashlib
import hmac
import os
import secrets
import time


class Tokens:
    """Issues and checks tokens under the key in the file `path`."""

    def __init__(self, path):
        self.path = path

    @classmethod
    def beside(cls, state_path):
        """The tokens of the cloud that `state_path` describes."""
        return cls(os.path.join(os.path.dirname(os.path.abspath(state_path)), 'token.key'))

    def issue(self, lifetime, tenant_id=''):
        """A new token and its expiry in seconds since the epoch, `lifetime` seconds from now."""
        expiry = int((time.time() + lifetime) * 1000)
        text = '%x.%s.%s' % (expiry, tenant_id, secrets.token_hex(16))
        return '%s.%s' % (text, _mac(self._make_key(), text)), expiry / 1000

    def check(self, token):
        """The id of the tenant that `token` is for ('' when unscoped), or None when it is not
        valid."""
        text, _, mac = token.rpartition('.')
        key = self._key()
        if key is None or not hmac.compare_digest(_mac(key, text).encode(), mac.encode('utf-8')):
            return None
        expiry, tenant_id, _ = text.split('.')
        return tenant_id if time.time() * 1000 < int(expiry, 16) else None

    def _key(self):
        try:
            with open(self.path, 'rb') as file:
                return file.read()
        except FileNotFoundError:
            return None

    def _make_key(self):
        """The key, made where there is none; link() lets exactly one of several makers win."""
        key = self._key()
        if key is None:
            draft = '%s.%s' % (self.path, secrets.token_hex(8))
            fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                with open(fd, 'wb') as file:
                    file.write(secrets.token_bytes(32))
                os.link(draft, self.path)
            except FileExistsError:
                pass
            finally:
                os.unlink(draft)
            key = self._key()
        return key


def _mac(key, text):
    return hmac.new(key, text.encode('utf-8', 'surrogateescape'), hashlib.sha256).hexdigest()
