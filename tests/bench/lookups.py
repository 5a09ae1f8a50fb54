"""The lookups of guests alone, as an agent would make them that does nothing else:

    lookups.py PORT ROUTER GUESTS THREADS       prints {"seconds": ...}

A token, the router's interfaces, then the port of each guest, by so many threads with a connection each.
"""
import concurrent.futures
import http.client
import json
import queue
import sys
import time
import urllib.parse

import portapi
import topology


class Client:
    """A connection to the port API; token: of whoever asked for one, or None."""

    def __init__(self, port, token=None):
        self._connection, self.token = http.client.HTTPConnection('127.0.0.1', port), token

    def authenticate(self):
        """Get a token."""
        credentials = {'username': portapi.USER, 'password': portapi.PASSWORD}
        answer = self._ask('POST', '/v2.0/tokens', json.dumps(
            {'auth': {'tenantName': portapi.TENANT, 'passwordCredentials': credentials}}))
        self.token = answer['access']['token']['id']

    def ports(self, **query):
        """What the port API has for this."""
        return self._ask('GET', '/v2.0/ports.json?' + urllib.parse.urlencode(query))['ports']

    def _ask(self, method, target, body=None):
        headers = {'Content-Type': 'application/json'}
        if self.token:
            headers['X-Auth-Token'] = self.token
        self._connection.request(method, target, body, headers)
        answer = self._connection.getresponse()
        text = answer.read()
        if answer.status != 200:
            raise SystemExit('lookups: %s %s: %d %s' % (method, target, answer.status, text[:200]))
        return json.loads(text)


def main(port, router, guests, threads):
    waiting = queue.SimpleQueue()
    for number in range(int(guests)):
        waiting.put(topology.guest_address(number))
    begun = time.monotonic()
    first = Client(int(port))
    first.authenticate()
    if not first.ports(device_id=router):
        raise SystemExit('lookups: the router has no interfaces')

    def look_up():
        client = Client(int(port), first.token)
        while True:
            try:
                address = waiting.get_nowait()
            except queue.Empty:
                return
            if len(client.ports(fixed_ips='ip_address=' + address)) != 1:
                raise SystemExit('lookups: no port has ' + address)
    with concurrent.futures.ThreadPoolExecutor(int(threads)) as pool:
        for done in [pool.submit(look_up) for _ in range(int(threads))]:
            done.result()
    print(json.dumps({'seconds': time.monotonic() - begun, 'threads': int(threads)}))


if __name__ == '__main__':
    main(*sys.argv[1:])
