"""What proxy, agent and master have in common: whose answers are counted, and how they are told."""
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import exposition  # noqa: E402
from loopback import Options, Running  # noqa: E402

from mdproxy import service, trust  # noqa: E402

ROUTER = trust.Identity('router', '11111111-2222-3333-4444-555555555555')
NETWORK = trust.Identity('network', '22222222-2222-3333-4444-555555555555')


def serving(several, *answers):
    """A Service that has given these answers, (origin, status, seconds) each."""
    with Running() as running:
        made = running.call(service.Service, running.loop, 'proxy', {'worker': '0'}, Options(), several)
    for answer in answers:
        made._observe(*answer)
    return made


def test_of_several_routers_the_answers_are_told_apart():
    made = serving(True, (ROUTER, 200, 0.1), (ROUTER, 200, 0.1), (ROUTER, 404, 0.1), (NETWORK, 200, None))
    found = exposition.values(made.registry.prometheus())['mdproxy_requests_total']
    common = (('role', 'proxy'),)
    assert found == {
        (('network', ''),) + common + (('router', ROUTER.id), ('status', '200'), ('worker', '0')): 2,
        (('network', ''),) + common + (('router', ROUTER.id), ('status', '404'), ('worker', '0')): 1,
        (('network', NETWORK.id),) + common + (('router', ''), ('status', '200'), ('worker', '0')): 1}


def test_the_status_sums_them_up():
    made = serving(True, (ROUTER, 200, 0.1), (NETWORK, 200, 0.1), (ROUTER, 0, 0.1))
    assert made.describe()['requests'] == {'200': 2, '0': 1}


def test_one_router_is_in_the_labels_already():
    made = serving(False, (ROUTER, 200, 0.1))
    assert 'mdproxy_requests_total{role="proxy",worker="0",status="200"} 1' in made.registry.prometheus()


def test_without_anybody_to_serve_it_is_drained_at_once():
    drained = []
    serving(False).drain(lambda: drained.append(True))
    assert drained == [True]


def test_counts_of_another_are_taken_in():
    one, other = serving(True, (ROUTER, 200, 0.1), (NETWORK, 404, 0.1)), serving(True, (ROUTER, 200, 0.1))
    one.add_counts(other.counts())
    assert one.describe()['requests'] == {'200': 2, '404': 1}


def test_an_option_that_takes_a_restart_stays_as_it_was(caplog):
    made = serving(False)
    options = Options(user='somebody', log_level='debug')
    made.configure(options)
    assert made.options.user == 'nobody' and made.options.log_level == 'debug'
    assert 'user has changed; that takes a restart' in caplog.text
