"""Asks as a guest and prints, as JSON, the lines of the head that its proxy sends to an agent meanwhile.

Arguments: namespace of the guest, port of the agent. For root, as everybody who can read the network.
"""
import json
import socket
import struct
import subprocess
import sys

_EVERYTHING = 0x0003
_TCP = 6
_ASK = '''
import urllib.request
urllib.request.urlopen('http://169.254.169.254/latest/meta-data/instance-id').read()
'''


def payload(packet, port):
    """What an IPv4 packet carries to this TCP port, else nothing."""
    if packet[9] != _TCP:
        return b''
    segment = packet[(packet[0] & 15) * 4:struct.unpack_from('!H', packet, 2)[0]]
    to, offset = struct.unpack_from('!H', segment, 2)[0], segment[12] >> 4
    return segment[offset * 4:] if to == port else b''


def main(netns, port):
    wire = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_EVERYTHING))
    wire.settimeout(10)
    asked = subprocess.Popen(['ip', 'netns', 'exec', netns, sys.executable, '-c', _ASK])
    head = b''
    while not head.startswith(b'GET '):
        packet, source = wire.recvfrom(65536)
        if source[1] == 0x0800:
            head = payload(packet, port)
    assert asked.wait() == 0
    print(json.dumps(head.decode('latin-1').split('\r\n\r\n')[0].split('\r\n')))


main(sys.argv[1], int(sys.argv[2]))
