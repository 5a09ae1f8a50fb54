"""nova: a real nginx with one worker that has the same 200 for everybody."""
import processes
import topology

PORT = 8775
BODY = 'x' * 200
_CONF = '''\
daemon off;
worker_processes 1;
pid %(base)s.pid;
error_log %(base)s.error.log;
events { worker_connections 16384; }
http {
    access_log off;
    default_type text/plain;
    keepalive_timeout 3600;
    keepalive_requests 1000000000;
    client_body_temp_path %(base)s.body;
    proxy_temp_path %(base)s.proxy;
    fastcgi_temp_path %(base)s.fastcgi;
    uwsgi_temp_path %(base)s.uwsgi;
    scgi_temp_path %(base)s.scgi;
    server { listen %(listen)s backlog=65535; return 200 "%(body)s"; }
}
'''


def start(base, listen='127.0.0.1:%d' % PORT, netns=None):
    """A running nginx; `base` begins the names of its files. Its Process."""
    with open(base + '.conf', 'w') as conf:
        conf.write(_CONF % {'base': base, 'listen': listen, 'body': BODY})
    argv = topology.within(netns, ['nginx', '-e', base + '.error.log', '-c', base + '.conf'])
    process = processes.Process(argv, base + '.log')
    # The pid file comes after the listener.
    processes.wait_until(lambda: process.check() or _exists(base + '.pid'), 'nginx')
    return process


def _exists(path):
    try:
        with open(path) as pid:
            return pid.read().strip()
    except FileNotFoundError:
        return False
