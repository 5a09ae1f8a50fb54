"""A cloud of each base, and the toolkit in it in each lifecycle. Without the sources nothing is run."""
import os
import sys

import pytest

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(os.path.dirname(HERE), 'integration')]

from folsom_cloud import SOURCES, Cloud, wait_until  # noqa: E402
from toolkit import Toolkit  # noqa: E402

if not all(SOURCES.values()):
    pytest.skip('NOVA_SOURCE and QUANTUM_SOURCE name no clones', allow_module_level=True)

# No default here: nothing is tested where there is none, and that is no success.
BASES = os.environ['FOLSOM_BASES'].split()
FIXED_IP, LONE_IP = '10.0.0.3', '10.0.0.9'


@pytest.fixture(scope='session', params=BASES)
def cloud(request):
    """A Cloud with guests `red` and `blue` of two projects at the same address, and `lone` of red's project
    at an address of its own.

    pristine, snapshot: what each was answered, and what the hosts had, before anything was patched.
    """
    made = Cloud(request.param)
    made.install()
    red, blue = made.add_project('red'), made.add_project('blue')
    made.red, made.blue = made.add_guest(red, 'red', FIXED_IP), made.add_guest(blue, 'blue', FIXED_IP)
    made.lone = made.add_guest(red, 'lone', LONE_IP)
    made.note_guests()
    made.lead_answers_back(red)
    wait_until(lambda: made.is_served(made.lone), 'Folsom serves the guest with an address of its own')
    made.pristine, made.snapshot = made.ask_all(), made.take_snapshot()
    return made


@pytest.fixture(scope='module', params=['jobs', 'l3_agent'])    # so that a cloud is made once for both
def toolkit(cloud, request):
    """The Toolkit in the cloud, after site.yml."""
    ran = Toolkit(cloud, request.param)
    yield ran
    ran.roll_back()
