"""The loop's side of lookups: one for all who ask the same, what is believed, and for how long."""
import heapq
import threading
import time

import pytest
from loopback import Options, Running, wait_until

from mdproxy import ports
from mdproxy.trust import Identity

ROUTER = Identity('router', '11111111-1111-1111-1111-111111111111')
OTHER = Identity('router', '22222222-2222-2222-2222-222222222222')
DOWN = ports.Outcome(ports.ERROR, None, 'answered 500')
SILENT = ports.Outcome(ports.ERROR, None, 'no answer', True)
GONE = ports.Outcome(ports.NONE, None, 'no port')
TWICE = ports.Outcome(ports.MANY, None, 'two ports')


def found(name):
    return ports.Outcome(ports.FOUND, ports.Instance(name, 't', 'p'), '')


class Api(object):
    """In place of PortApi: answers when it is let, FOUND or as `outcome` says."""

    def __init__(self, prefix=''):
        self.asked, self.free, self.outcome, self.prefix = [], threading.Event(), None, prefix
        self.free.set()

    def resolve(self, identity, ip, mac):
        self.asked.append(ip)
        self.free.wait(10)
        return self.outcome or found(self.prefix + (mac or ip))

    def token_age(self):
        return 7.0


class Lookups(object):
    def __init__(self, running, **more):
        self.running, self.api, self.answers = running, Api(), []
        self.lookup = ports.PortLookup(running.loop, self.api, Options(**more))

    def find(self, ip='10.0.0.3', identity=ROUTER, mac=None):
        self.running.call(self.lookup.find, identity, ip, mac,
                          lambda outcome, number: self.answers.append(outcome), 1)

    def ask(self, *args):
        count = len(self.answers)
        self.find(*args)
        wait_until(lambda: len(self.answers) > count)
        return self.answers[-1]

    def counted(self):
        """The outcomes that there were."""
        return dict((name, n) for name, n in self.lookup.outcomes.items() if n)


class Clock(object):
    """A loop whose time goes on when it is told to; stands in for Running too."""

    def __init__(self):
        self.loop, self.now = self, 1000.0
        self._timers, self._calls, self._number = [], [], 0

    def call(self, function, *args):
        function(*args)

    def call_soon_threadsafe(self, callback, *args):
        self._calls.append((callback, args))

    def call_later(self, delay, callback, *args):
        self._number += 1
        heapq.heappush(self._timers, (self.now + delay, self._number, callback, args))

    def arrived(self, count=1):
        """So many lookups have come back from their threads."""
        wait_until(lambda: len(self._calls) >= count)
        assert len(self._calls) == count
        while self._calls:
            callback, args = self._calls.pop(0)
            callback(*args)

    def advance(self, seconds):
        end = self.now + seconds
        while self._timers and self._timers[0][0] <= end:
            self.now, _, callback, args = heapq.heappop(self._timers)
            callback(*args)
        self.now = end


@pytest.fixture
def running():
    with Running() as running:
        yield running


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(ports, 'monotonic', lambda: clock.now)
    return clock


@pytest.fixture
def timed(clock, monkeypatch):
    """Lookups on a Clock."""
    lookups = []

    def timed(**more):
        lookups.append(Lookups(clock, **dict(dict(api_timeout=10.0), **more)))
        return lookups[-1]
    yield timed
    monkeypatch.undo()
    for one in lookups:
        one.api.free.set()
        one.lookup.close()


def begun(lookups, count):
    """Wait until so many lookups are in the hands of a thread."""
    wait_until(lambda: len(lookups.api.asked) == count)


def test_who_asks_for_the_same_waits_for_one_lookup(running):
    lookups = Lookups(running)
    lookups.api.free.clear()
    for _ in range(50):
        lookups.find()
    lookups.find('10.0.0.4')
    lookups.find('10.0.0.3', OTHER)
    lookups.api.free.set()
    wait_until(lambda: len(lookups.answers) == 52)
    assert sorted(lookups.api.asked) == ['10.0.0.3', '10.0.0.3', '10.0.0.4']
    assert lookups.counted() == {'miss': 3, 'shared': 49}
    lookups.lookup.close()


@pytest.mark.parametrize('outcome, ttl', [
    (found('1'), 10.0), (GONE, 2.0), (TWICE, 2.0), (DOWN, ports.ERROR_TTL)])
def test_an_answer_is_believed_for_its_time(clock, timed, outcome, ttl):
    lookups = timed(cache_ttl=10.0, negative_cache_ttl=2.0)
    lookups.api.outcome = outcome
    lookups.find()
    clock.arrived()
    clock.advance(ttl - 0.01)
    lookups.find()
    assert lookups.answers == [outcome] * 2 and len(lookups.api.asked) == 1
    clock.advance(0.01)
    lookups.find()
    clock.arrived()
    assert lookups.answers == [outcome] * 3 and len(lookups.api.asked) == 2


def test_one_link_local_address_with_another_mac_address_is_another_guest(running):
    lookups = Lookups(running)
    for mac in ('fa:16:3e:00:00:01', 'fa:16:3e:00:00:02', 'fa:16:3e:00:00:01'):
        assert lookups.ask('fe80::3', ROUTER, mac) == found(mac)
    assert lookups.counted() == {'miss': 2, 'hit': 1}
    lookups.lookup.close()


def test_every_answer_is_counted_once(clock, timed):
    lookups = timed()
    for outcome in found('1'), GONE, TWICE, DOWN:
        lookups.api.outcome = outcome
        for _ in range(2):
            lookups.find(outcome.reason)
        clock.arrived()
        lookups.find(outcome.reason)
    assert lookups.lookup.outcomes == {'miss': 1, 'shared': 1, 'hit': 1, 'stale': 0, 'none': 3,
                                       'many': 3, 'error': 3}
    assert len(lookups.answers) == 12


@pytest.mark.parametrize('failure', [DOWN, SILENT])
def test_what_was_found_is_told_while_the_api_is_down_but_not_for_ever(clock, timed, failure):
    lookups = timed(stale_ttl=300.0)
    lookups.find()
    clock.arrived()
    lookups.api.outcome = failure
    clock.advance(10)
    while clock.now < 1300:             # 300 s after it was found
        lookups.find()
        clock.arrived()
        lookups.find()                  # is not asked again at once
        clock.advance(ports.ERROR_TTL)
    assert lookups.counted() == {'miss': 1, 'stale': 2 * 290}
    assert set(lookups.answers) == set([found('10.0.0.3')])
    lookups.find()
    clock.arrived()
    assert lookups.answers[-1] == failure


def test_the_last_stale_answer_is_not_told_longer_than_stale_ttl(clock, timed):
    lookups = timed(stale_ttl=20.0)
    lookups.find()
    clock.arrived()
    lookups.api.outcome = DOWN
    clock.advance(20 - ports.ERROR_TTL / 2)
    lookups.find()
    clock.arrived()
    clock.advance(ports.ERROR_TTL / 2)
    lookups.find()
    clock.arrived()
    assert lookups.answers[1:] == [found('10.0.0.3'), DOWN]


def test_confirmed_again_it_is_no_longer_stale(clock, timed):
    lookups = timed(stale_ttl=30.0)
    for outcome in None, DOWN, None, DOWN:
        lookups.api.outcome = outcome
        lookups.find()
        clock.arrived()
        clock.advance(20)
    assert lookups.counted() == {'miss': 2, 'stale': 2}


def test_without_stale_ttl_a_failure_is_told_at_once(clock, timed):
    lookups = timed(stale_ttl=0.0)
    lookups.find()
    clock.arrived()
    lookups.api.outcome = DOWN
    clock.advance(10)
    lookups.find()
    clock.arrived()
    assert lookups.answers[-1] == DOWN


@pytest.mark.parametrize('answer', [GONE, TWICE, found('another')])
def test_a_clear_answer_replaces_what_was_known(clock, timed, answer):
    lookups = timed()
    for outcome in None, DOWN, answer, DOWN:
        lookups.api.outcome = outcome
        lookups.find()
        clock.arrived()
        clock.advance(20)
    last = answer if answer.reason == ports.FOUND else DOWN
    assert lookups.answers == [found('10.0.0.3'), found('10.0.0.3'), answer, last]


def test_a_guest_that_is_known_does_not_wait_for_an_api_that_hangs(clock, timed):
    lookups = timed()
    lookups.find()
    clock.arrived()
    clock.advance(10)
    lookups.api.free.clear()
    lookups.find()
    begun(lookups, 2)
    clock.advance(ports.STALE_AFTER / 2)
    lookups.find()
    assert len(lookups.answers) == 1        # there may still be an answer
    clock.advance(ports.STALE_AFTER / 2)
    assert lookups.answers == [found('10.0.0.3')] * 3
    clock.advance(5)
    lookups.find()
    assert lookups.answers == [found('10.0.0.3')] * 4
    assert lookups.counted() == {'miss': 1, 'stale': 3} and len(lookups.api.asked) == 2
    lookups.api.outcome = GONE
    lookups.api.free.set()
    clock.arrived()
    lookups.find()
    assert lookups.answers[-1] == GONE


def test_a_known_guest_behind_many_others_in_an_api_that_hangs_does_not_wait(clock, timed):
    lookups = timed(api_threads=2)
    lookups.find()
    clock.arrived()
    clock.advance(10)
    lookups.api.free.clear()
    for number in range(20):
        lookups.find(str(number))
    lookups.find()
    clock.advance(ports.STALE_AFTER)
    assert lookups.answers == [found('10.0.0.3')] * 2


def test_a_known_guest_does_not_wait_for_one_call_that_hangs_while_others_are_answered(clock, timed):
    lookups = timed(api_threads=2)
    lookups.find('known')
    clock.arrived()
    clock.advance(10)
    resolve, gate = lookups.api.resolve, threading.Event()

    def gated(identity, ip, mac):
        outcome = resolve(identity, ip, mac)
        if ip == 'known':
            gate.wait(10)
        return outcome
    lookups.api.resolve = gated
    lookups.find('known')
    begun(lookups, 2)
    for number in range(3):
        clock.advance(ports.STALE_AFTER / 2)
        lookups.find(str(number))
        clock.arrived()
    assert lookups.counted() == {'miss': 4, 'stale': 1}
    gate.set()


def test_a_long_queue_alone_makes_nothing_stale(clock, timed):
    lookups = timed(api_threads=1)
    lookups.find('known')
    clock.arrived()
    clock.advance(10)
    lookups.api.free.clear()
    lookups.find('slow')
    lookups.find('known')
    begun(lookups, 2)
    clock.advance(ports.STALE_AFTER * 0.9)
    lookups.api.free.set()
    clock.arrived(2)
    assert lookups.counted() == {'miss': 3}


def test_a_queue_that_moves_is_waited_for_until_it_stops(clock, timed):
    lookups = timed(api_threads=1)
    lookups.find('known')
    clock.arrived()
    clock.advance(10)
    gates = [threading.Event() for _ in range(3)]
    resolve = lookups.api.resolve

    def gated(identity, ip, mac):
        outcome = resolve(identity, ip, mac)
        gates[int(ip)].wait(10)
        return outcome
    lookups.api.resolve = gated
    for number in range(3):
        lookups.find(str(number))
    lookups.find('known')
    for number in range(2):
        begun(lookups, 2 + number)
        clock.advance(ports.STALE_AFTER * 0.75)
        gates[number].set()
        clock.arrived()
    begun(lookups, 4)
    assert len(lookups.answers) == 3 and clock.now == 1010 + ports.STALE_AFTER * 1.5
    clock.advance(ports.STALE_AFTER)
    assert lookups.answers[-1] == found('known') and lookups.counted() == {'miss': 3, 'stale': 1}
    lookups.api.resolve = resolve
    gates[2].set()


def test_one_silence_answers_all_who_waited_before_it_and_none_who_came_after(clock, timed):
    lookups = timed(api_threads=4)
    lookups.api.free.clear()
    lookups.api.outcome = SILENT
    for number in range(1000):
        lookups.find(str(number))
    begun(lookups, 4)
    clock.advance(10)
    lookups.api.free.set()
    clock.arrived(1000)
    assert lookups.answers == [SILENT] * 1000 and len(lookups.api.asked) == 4
    clock.advance(ports.ERROR_TTL)
    lookups.api.outcome = None
    for number in range(1000):
        lookups.find(str(number))
    clock.arrived(1000)
    assert lookups.counted() == {'error': 1000, 'miss': 1000}


def test_an_answer_that_is_an_error_is_one_lookups_own(clock, timed):
    lookups = timed(api_threads=1)
    lookups.api.outcome = DOWN
    lookups.api.free.clear()
    for number in range(20):
        lookups.find(str(number))
    clock.advance(10)
    lookups.api.free.set()
    clock.arrived(20)
    assert len(lookups.api.asked) == 20


def test_a_thousand_guests_of_a_slow_api_all_get_their_answer(running):
    lookups = Lookups(running)
    resolve = lookups.api.resolve

    def slow(identity, ip, mac):
        time.sleep(0.002)
        return resolve(identity, ip, mac)
    lookups.api.resolve = slow
    running.call(lambda: [lookups.lookup.find(ROUTER, str(number), None, lookups.answers.append)
                          for number in range(1000) for _ in range(3)])
    wait_until(lambda: len(lookups.answers) == 3000)
    assert lookups.counted() == {'miss': 1000, 'shared': 2000}
    assert len(set(lookups.api.asked)) == len(lookups.api.asked) == 1000
    lookups.lookup.close()


def test_nobody_waits_for_ever_and_the_answer_still_counts(running):
    lookups = Lookups(running, api_timeout=0.1)
    lookups.api.free.clear()
    assert lookups.ask().reason == ports.ERROR
    assert lookups.ask().reason == ports.ERROR
    lookups.api.free.set()
    wait_until(lambda: lookups.ask().reason == ports.FOUND)
    assert len(lookups.api.asked) == 1
    lookups.lookup.close()


def test_the_log_has_a_line_when_the_api_fails_and_one_when_it_is_well_again(clock, timed, caplog):
    lookups = timed()
    told = lambda: [record.getMessage() for record in caplog.records]     # noqa: E731
    lookups.find('0')
    clock.arrived()
    assert told() == [] and lookups.lookup.health()['api'] == 'ok'
    for number in range(1, 60):         # it fails every other time
        lookups.api.outcome = DOWN if number % 2 else None
        clock.advance(1)
        lookups.find(str(number))
        clock.arrived()
    assert told() == ['the port API fails: answered 500']
    lookups.api.outcome = None
    clock.advance(5)
    for number in range(60, 70):
        lookups.find(str(number))
        clock.arrived()
    assert told()[1:] == ['the port API answers again, 63 s after it began to fail']
    assert lookups.lookup.health()['api'] == 'ok'


def test_health_tells_how_the_api_is_and_for_how_long(clock, timed):
    lookups = timed()
    assert lookups.lookup.health() == {
        'api': 'unknown', 'since': None, 'last_error': '', 'cached': 0, 'waiting': 0}
    lookups.api.free.clear()
    for _ in range(3):
        lookups.find()
    assert lookups.lookup.health()['waiting'] == 3
    lookups.api.outcome = DOWN
    lookups.api.free.set()
    clock.arrived()
    clock.advance(4)
    assert lookups.lookup.health() == {
        'api': 'failing', 'since': 4.0, 'last_error': 'answered 500', 'cached': 1, 'waiting': 0}
    assert lookups.lookup.token_age() == 7.0


def test_other_options_count_at_once_and_what_is_known_stays(clock, timed):
    lookups = timed(api_threads=1, cache_ttl=10.0)
    lookups.find()
    clock.arrived()
    clock.advance(5)
    old, lookups.api = lookups.api, Api('new ')
    lookups.lookup.reconfigure(lookups.api, Options(api_threads=3, cache_ttl=6.0))
    lookups.find()
    clock.advance(1)
    lookups.find()
    clock.arrived()
    assert lookups.answers == [found('10.0.0.3')] * 2 + [found('new 10.0.0.3')]
    assert len(old.asked) == 1
    lookups.api.free.clear()
    for number in range(5):
        lookups.find(str(number))
    begun(lookups, 1 + 3)
    lookups.api.free.set()
    clock.arrived(5)


def test_the_silence_of_the_old_api_says_nothing_of_the_new(clock, timed):
    lookups = timed(api_threads=1)
    lookups.api.free.clear()
    lookups.api.outcome = SILENT
    for number in range(5):
        lookups.find(str(number))
    begun(lookups, 1)
    old, lookups.api = lookups.api, Api()
    lookups.lookup.reconfigure(lookups.api, Options(api_threads=1, api_timeout=10.0))
    clock.advance(10)
    old.free.set()
    clock.arrived(5)
    assert lookups.counted() == {'error': 1, 'miss': 4}


def test_the_cache_is_bounded_and_forgets_the_oldest(clock, timed, monkeypatch):
    monkeypatch.setattr(ports, 'CACHE_SIZE', 3)
    lookups = timed()
    for ip in '12341':
        lookups.find(ip)
        clock.arrived()
    assert lookups.api.asked == list('12341')
    assert lookups.lookup.health()['cached'] == 3
    clock.advance(20)
    for ip in '456':        # what is confirmed is young again
        lookups.find(ip)
        clock.arrived()
    lookups.find('4')
    assert lookups.counted()['hit'] == 1


def test_the_cache_is_bounded_with_stale_entries_too(clock, timed, monkeypatch):
    monkeypatch.setattr(ports, 'CACHE_SIZE', 3)
    lookups = timed()
    for ip in '1234':
        lookups.find(ip)
        clock.arrived()
    clock.advance(20)
    lookups.api.outcome = DOWN
    for ip in '23456':
        lookups.find(ip)
        clock.arrived()
    assert lookups.lookup.health()['cached'] == 3 + 2
    clock.advance(20)
    for ip in '1234':               # 1 was confirmed first, and made room
        lookups.find(ip)
        clock.arrived()
    assert [outcome.reason for outcome in lookups.answers[-4:]] == ['error'] + ['found'] * 3


def test_addresses_that_nobody_has_do_not_push_out_those_that_somebody_has(clock, timed, monkeypatch):
    monkeypatch.setattr(ports, 'CACHE_SIZE', 3)
    lookups = timed()
    lookups.find('1')
    clock.arrived()
    lookups.api.outcome = ports.Outcome(ports.NONE, None, 'no port')
    for number in range(10):
        lookups.find('made up %d' % number)
        clock.arrived()
    lookups.find('1')
    assert lookups.counted()['hit'] == 1
    assert lookups.lookup.health()['cached'] == 1 + 3


def test_routers_take_turns():
    turns = ports._Turns()
    for key in ['a1', 'a2', 'a3', 'b1', 'c1', 'c2']:
        turns.put(ports._Lookup(key, 0, 0, None))       # an identity is the key's first part
    assert [turns.waiting(name) for name in 'abcd'] == [3, 1, 2, 0]
    assert [turns.get().key for _ in range(6)] == ['a1', 'b1', 'c1', 'a2', 'c2', 'a3']
    assert turns.waiting('a') == 0
    turns.close()
    assert turns.get() is None and turns.get() is None


def test_one_router_has_a_share_of_what_may_wait(clock, timed, monkeypatch):
    monkeypatch.setattr(ports, '_PENDING_OF_ONE', 2)
    lookups = timed(api_threads=1)
    lookups.api.free.clear()
    lookups.find('1')
    begun(lookups, 1)
    for ip in '234':
        lookups.find(ip)
    assert [outcome.detail for outcome in lookups.answers] == [
        'too many lookups wait for the port API']
    lookups.find('1', OTHER)            # which is another's, and does not matter to the others
    assert len(lookups.answers) == 1
    lookups.api.free.set()
    clock.arrived(4)
    assert lookups.counted() == {'error': 1, 'miss': 4}
    assert lookups.api.asked == ['1', '2', '1', '3']


def test_what_nobody_waits_for_any_more_is_not_asked(clock, timed):
    lookups = timed(api_threads=1, api_timeout=10.0)
    lookups.api.free.clear()
    lookups.find('1')
    begun(lookups, 1)
    lookups.find('2')
    clock.advance(31)                   # both have been told that it takes too long
    assert len(lookups.answers) == 2
    lookups.api.free.set()
    clock.arrived(2)
    assert lookups.api.asked == ['1']
    lookups.find('2')
    clock.arrived()
    assert lookups.answers[-1].reason == ports.FOUND


def test_lookups_under_way_are_bounded(clock, timed, monkeypatch):
    monkeypatch.setattr(ports, '_PENDING', 2)
    lookups = timed()
    lookups.api.free.clear()
    for ip in '1231':
        lookups.find(ip)
    assert [outcome.detail for outcome in lookups.answers] == [
        'too many lookups wait for the port API']
    lookups.api.free.set()
    clock.arrived(2)
    lookups.find('3')
    clock.arrived()
    assert lookups.counted() == {'error': 1, 'miss': 3, 'shared': 1}


def test_who_fails_over_an_answer_does_not_keep_it_from_others(clock, timed, caplog):
    lookups = timed()
    lookups.lookup.find(ROUTER, '10.0.0.3', None, lambda outcome: outcome.no_such_thing)
    lookups.find()
    clock.arrived()
    assert lookups.answers == [found('10.0.0.3')]
    assert 'error after a port lookup' in caplog.text


def test_no_more_threads_than_allowed(running):
    lookups = Lookups(running, api_threads=3)
    before = threading.active_count()
    lookups.api.free.clear()
    for number in range(10):
        lookups.find(str(number))
    wait_until(lambda: len(lookups.api.asked) == 3)
    assert threading.active_count() == before + 3
    lookups.api.free.set()
    wait_until(lambda: len(lookups.answers) == 10)
    lookups.lookup.close()
    wait_until(lambda: threading.active_count() == before)
