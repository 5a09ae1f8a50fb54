"""The cloud is made once for all tests of this folder; without root or virtualenvs they are skipped."""
import os
import sys

import pytest

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(os.path.dirname(HERE), 'integration')]

import equipment  # noqa: E402
import services  # noqa: E402
from cloud_of_today import Cloud  # noqa: E402


@pytest.fixture(scope='session')
def cloud():
    equipment.requirements()
    services.requirements()
    with equipment.working_folder() as folder:
        made = Cloud(folder)
        try:
            made.start()
            yield made
        finally:
            made.stop()
