"""A WSGI application of nova or neutron on loopback, run by the virtualenv of the service:

    wsgi_service.py MODULE

The service finds its configuration by its own environment variables. When it listens
it says on which port.
"""
import importlib
import sys

import waitress.server


def main(module):
    del sys.argv[1:]        # the service reads it for itself
    application = importlib.import_module(module).application
    server = waitress.server.create_server(application, host='127.0.0.1', port=0, threads=8)
    print('listens on port %s.' % server.effective_port, flush=True)
    server.run()


if __name__ == '__main__':
    main(*sys.argv[1:])
