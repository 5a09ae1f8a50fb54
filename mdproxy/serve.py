"""The process that serves one router: what `opener` becomes.

Rules kept:

- There is one for every router, so memory is what counts: no argparse (1 MB), no site (1 MB),
  nothing of OpenSSL (2 MB or more).
- Its words are ours alone, NAME=VALUE each: router=UUID or network=UUID; listen-fd, one or two, and
  neighbours-fd; status-fd, log-fd, ready-fd; netns and inode=DEVICE:NUMBER, the namespace of the
  listeners; pid-file, log-file, syslog=FACILITY; and any number of default=, config-file= and set=,
  the three of config.Sources.
- It ends when that namespace is gone or another has its name: whoever started it starts another.
- Who started it is told when it serves, or why not.
"""
import logging
import os
import sys


def _without_openssl():
    """Have imports that ask for OpenSSL go on without, as where Python was built without it."""
    sys.modules['_ssl'] = None          # 2.7's socket.py imports it if it is there
    try:
        # Python's own SHA-2, for links. 2.7 has none, and some distributions take it out.
        __import__('_sha2' if sys.version_info >= (3, 12) else '_sha256')
        sys.modules['_hashlib'] = None
    except ImportError:
        pass


if sys.flags.no_site:                   # the opener's word that TLS is not needed
    _without_openssl()

from mdproxy import config, daemon, logs, namespaces, trust, watch  # noqa: E402

_REPEATED = ('default', 'config-file', 'set', 'listen-fd')      # words that may come several times

_log = logging.getLogger('mdproxy.serve')


def main(words):
    """Serve as the words say until SIGTERM; returns the exit status."""
    daemon.await_signals()
    given = dict.fromkeys(_REPEATED, ())
    for word in words:
        name, _, value = word.partition('=')
        given[name] = given[name] + (value,) if name in _REPEATED else value
    sources = config.Sources(given['default'], given['config-file'], given['set'])
    try:
        status = _serve(given, sources)
    finally:
        if 'pid-file' in given:
            daemon.remove_pid(given['pid-file'])
    return status


def _serve(given, sources):
    ready = int(given.get('ready-fd', -1))
    kind = 'router' if 'router' in given else 'network'

    def serving(proxy):
        _take_stdio(given, ready)
        logs.configure(proxy.options.log_level,
                       logs.Destination(given.get('log-file'), given.get('syslog')))
        if 'netns' in given:
            watch.until_gone(proxy.loop, given['netns'], inode, lambda: _end(proxy))
        if ready >= 0:
            daemon.tell(ready, daemon.SERVING)

    try:
        listeners = [namespaces.inherited_listener(int(number)) for number in given['listen-fd']]
        table = status = None
        if 'neighbours-fd' in given:
            from mdproxy import neighbours
            table = neighbours.inherited_socket(int(given['neighbours-fd']))
        if 'status-fd' in given:
            status = namespaces.inherited_listener(int(given['status-fd']))
        inode = tuple(map(int, given.get('inode', '0:0').split(':')))
        from mdproxy import proxy
        return proxy.run(trust.Identity(kind, given[kind]), listeners, sources, status, serving, table)
    except config.ConfigError as error:
        return _failed(ready, 2, error)
    except (namespaces.NamespaceError, ValueError) as error:
        return _failed(ready, 1, error)
    except Exception:
        # A daemon's standard error may lead nowhere.
        _log.critical('the proxy ends', exc_info=True)
        return 1


def _end(proxy):
    """At once, and without what others could take for a proxy that serves.

    Nobody waits for an answer: an agent takes the interfaces away with the namespace. And as long as
    a socket of ours is open, what was deleted lives on.
    """
    proxy.drain(lambda: None)
    proxy.loop.stop()


def _failed(ready, status, reason):
    logs.fail(status, reason)
    if ready >= 0:
        daemon.tell(ready, status)
    return status


def _take_stdio(given, ready):
    """Let go of the caller's standard input, output and error where there is something else."""
    if ready >= 0:
        logs.take_over(os.open(os.devnull, os.O_RDWR), (0, 1, 2))
    if 'log-fd' in given:
        logs.take_over(int(given['log-fd']), (1, 2))
