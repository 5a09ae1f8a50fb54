"""Every request a service got, one JSON line each in DIR/<service>.jsonl, oldest first.

    time        seconds since the epoch, when the request's first line was in
    peer, peer_port                     who sent it
    method, target, version             as sent
    headers     list of [name, value] in the order sent, case and repetitions kept; bytes beyond
                ASCII stand as the latin-1 characters of the same number, so nothing is lost
    body        base64 of the first 64 KiB     body_size   bytes of the whole body
    status      what was answered
    malformed   why the request could not be read, else null

The line is in the file before the answer is sent. Passwords and tokens are in it, hence mode 0600.
The file is opened anew for each line: it may be truncated, moved or deleted at any time.
"""
import base64
import json
import os
import threading

KEPT_BODY = 65536       # bytes


class Recorder:
    """Appends to `folder`/`service`.jsonl, making the folder where it is missing; OSError if it
    cannot."""

    def __init__(self, folder, service):
        self.path = os.path.join(folder, service + '.jsonl')
        self._lock = threading.Lock()
        os.makedirs(folder, mode=0o700, exist_ok=True)
        self._write(b'')

    def append(self, request, status):
        """Add `request`, answered with `status`; whole lines only, whichever thread asks."""
        record = {
            'time': request.time, 'peer': request.peer[0], 'peer_port': request.peer[1],
            'method': request.method, 'target': request.target, 'version': request.version,
            'headers': request.headers,
            'body': base64.b64encode(request.body[:KEPT_BODY]).decode('ascii'),
            'body_size': len(request.body), 'status': status, 'malformed': request.malformed}
        self._write(json.dumps(record).encode('ascii') + b'\n')

    def _write(self, line):
        with self._lock:
            fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.fchmod(fd, 0o600)        # also where someone else made the file
                while line:
                    line = line[os.write(fd, line):]
            finally:
                os.close(fd)
