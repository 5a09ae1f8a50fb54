"""Generations of workers, as the master sees them. What they serve: tests/integration/test_shared.py."""
import gc
import os
import re
import signal
import sys

import pytest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from forking import Home  # noqa: E402

from mdproxy import config, workers  # noqa: E402


class Crew(object):
    """Two workers that say they serve and end when they are told to. work: what they do instead."""

    def __init__(self, work=None):
        self.home, self.generations, self.counted = Home(), 0, []
        self.workers = workers.Workers(self.home.loop, self.home.children, 2, work or self.serve,
                                       self.served, self.counted.append)

    @staticmethod
    def serve(slot, control):
        control.send(workers._SERVING)
        return 0 if control.recv(1) else 1

    def served(self):
        self.generations += 1

    def until_serving(self, generation):
        self.home.until(lambda: self.generations >= generation, 'generation %d' % generation)
        return self.workers.pids()

    def end(self):
        drained = []
        self.workers.drain(lambda: drained.append(True))
        self.home.until(lambda: drained, 'end of all workers')
        self.home.close()


@pytest.fixture(autouse=True)
def prompt(monkeypatch):
    monkeypatch.setattr(workers, '_APART', 0.0)
    monkeypatch.setattr(workers, '_SETTLE', 0.0)


@pytest.fixture
def crew():
    crew = Crew()
    yield crew
    crew.end()


def test_the_next_generation_serves_before_the_last_one_drains(crew):
    crew.workers.renew()
    assert crew.workers.changing
    first = crew.until_serving(1)
    assert sorted(first) == [0, 1] and not crew.workers.changing
    crew.workers.renew()
    second = crew.until_serving(2)
    assert sorted(second) == [0, 1] and not set(first.values()) & set(second.values())
    crew.home.until(lambda: len(crew.workers._all) == 2, 'end of the first generation')


def test_many_changes_at_once_are_one_generation(crew):
    for _ in range(50):
        crew.workers.renew()
    crew.until_serving(1)
    assert crew.workers._generation == 1


def test_there_may_be_more_or_fewer_in_the_next_generation(crew):
    crew.workers.renew()
    crew.until_serving(1)
    crew.workers.renew(3)
    assert sorted(crew.until_serving(2)) == [0, 1, 2]
    crew.workers.renew(1)
    assert sorted(crew.until_serving(3)) == [0]


def test_a_worker_that_dies_is_replaced_in_its_place(crew):
    crew.workers.renew()
    pids = crew.until_serving(1)
    os.kill(pids[1], signal.SIGKILL)
    found = crew.home.until(lambda: crew.workers.pids().get(1) not in (None, pids[1]) and crew.workers.pids(),
                            'another worker')
    assert found[0] == pids[0]


def test_workers_that_never_serve_are_replaced_ever_more_slowly(monkeypatch):
    pauses = []
    crew = Crew(lambda slot, control: 1)
    call_later = crew.home.loop.call_later

    def note(delay, callback, *args):
        if callback == crew.workers._start:
            pauses.append(delay)
        return call_later(min(delay, 0.01), callback, *args)
    monkeypatch.setattr(crew.home.loop, 'call_later', note)
    crew.workers.renew()
    crew.home.until(lambda: len(pauses) > 5, 'several tries')
    assert pauses[:4] == list(workers._PAUSES) and set(pauses[4:]) == set([workers._PAUSES[-1]])
    crew.end()


def test_while_one_generation_starts_another_waits_but_not_for_ever(monkeypatch):
    monkeypatch.setattr(workers, '_STARTING', 0.2)
    reading, writing = os.pipe()

    def work(slot, control):
        if os.read(reading, 1) == b'h':
            signal.pause()              # it hangs before it serves
        return Crew.serve(slot, control)
    crew = Crew(work)
    os.write(writing, b'hhss')
    crew.workers.renew()
    crew.home.until(lambda: len(crew.workers._all) == 2, 'the first generation')
    crew.workers.renew()
    crew.until_serving(1)
    assert crew.workers._generation == 2
    monkeypatch.setattr(workers, '_GRACE', 0.1)
    crew.end()
    os.close(reading)
    os.close(writing)


def test_one_that_does_not_end_is_killed(monkeypatch):
    monkeypatch.setattr(workers, '_GRACE', 0.1)

    def work(slot, control):
        control.send(workers._SERVING)
        while True:
            signal.pause()
    crew = Crew(work)
    crew.workers.renew()
    crew.until_serving(1)
    crew.end()


def test_so_many_drain_at_leisure_and_no_more(monkeypatch):
    monkeypatch.setattr(workers, '_DRAINING', 4)

    def work(slot, control):
        control.send(workers._SERVING)
        while control.recv(1) not in (workers._HURRY, b''):
            pass
        return 0
    crew = Crew(work)
    for generation in range(1, 6):
        crew.workers.renew()
        crew.until_serving(generation)
    crew.home.until(lambda: len(crew.workers._all) == 6, 'end of those who drain too long')
    crew.end()


def test_without_processes_it_is_tried_again(monkeypatch):
    crew, tries = Crew(), []
    fork = crew.home.children.fork

    def refusing(run, ended):
        tries.append(True)
        if len(tries) <= 3:
            raise OSError(11, 'Resource temporarily unavailable')
        return fork(run, ended)
    monkeypatch.setattr(crew.home.children, 'fork', refusing)
    monkeypatch.setattr(workers, '_PAUSES', (0.0, 0.01))
    crew.workers.renew()
    crew.until_serving(1)
    crew.end()


def test_what_is_no_name_of_a_master_is_none(tmpdir):
    assert workers.master_serving(str(tmpdir.join('lock'))) is None
    tmpdir.join('lock').write('')
    assert workers.master_serving(str(tmpdir.join('lock'))) is None
    tmpdir.join('lock').write('12\n')
    assert workers.master_serving(str(tmpdir.join('lock'))) == '12\n'


def test_what_a_worker_has_counted_outlives_it():
    def work(slot, control):
        control.sendall(workers._SERVING)
        control.recv(1)
        control.sendall(b'["of %d"]\n' % slot)
        return 0
    crew = Crew(work)
    crew.workers.renew()
    crew.until_serving(1)
    crew.end()
    assert sorted(crew.counted) == ['["of 0"]', '["of 1"]']


def test_generations_that_do_not_come_up_do_not_pile_up(monkeypatch):
    monkeypatch.setattr(workers, '_STARTING', 0.0)
    monkeypatch.setattr(workers, '_GRACE', 0.1)
    reading, writing = os.pipe()

    def work(slot, control):
        os.read(reading, 1)             # what it waits for takes long
        return Crew.serve(slot, control)
    crew = Crew(work)
    most = []
    for _ in range(30):
        crew.workers.renew()
        ends = crew.home.loop.now + 0.02
        crew.home.until(lambda ends=ends: crew.home.loop.now > ends, 'a moment')
        most.append(len(crew.workers._all))
    assert max(most) == 4               # of two generations
    os.write(writing, b'x' * 6)         # of the third one as well, which was asked for meanwhile
    crew.home.until(lambda: len(crew.workers.pids()) == 2 and len(crew.workers._all) == 2, 'the last one')
    crew.end()
    os.close(reading)
    os.close(writing)


def test_an_older_generation_is_kept_whole_while_the_next_one_does_not_come_up():
    served = []

    def work(slot, control):
        if not served:
            return 1
        return Crew.serve(slot, control)
    served.append(True)
    crew = Crew(work)
    crew.workers.renew()
    pids = crew.until_serving(1)
    del served[:]
    crew.workers.renew()
    crew.home.until(lambda: crew.workers.failing, 'failures')
    assert crew.workers.pids() == pids
    served.append(True)
    os.kill(pids[0], signal.SIGKILL)
    crew.home.until(lambda: crew.workers.pids().get(0) not in (None, pids[0]), 'another in its place')
    crew.end()


def test_workers_that_end_as_soon_as_they_serve_are_replaced_ever_more_slowly(monkeypatch):
    starts = []

    def work(slot, control):
        control.sendall(workers._SERVING)
        return 1
    crew = Crew(work)
    start = crew.workers._start
    monkeypatch.setattr(crew.workers, '_start', lambda *words: starts.append(words) or start(*words))
    crew.workers.renew()
    ends = crew.home.loop.now + 1.0
    crew.home.until(lambda: crew.home.loop.now > ends, 'a second')
    assert len(starts) < 20 and crew.workers.failing
    crew.end()


def own_memory():
    """kB of this process that are nobody else's as well."""
    with open('/proc/self/smaps') as maps:
        return sum(map(int, re.findall(r'^Private_Dirty: +(\d+) kB', maps.read(), re.MULTILINE)))


def test_a_collection_copies_nothing_more_once_a_worker_serves(monkeypatch):
    grown, much = [], [[] for _ in range(200000)]       # 14 MB or more

    def collect(control, text):
        assert text == workers._SERVING
        before = own_memory()
        gc.collect()
        os._exit(min((own_memory() - before) // 64, 255))
    monkeypatch.setattr(workers, '_tell', collect)
    home = Home()
    home.children.fork(lambda: workers.serve(0, None, [], [], config.Options({}), None), grown.append)
    home.until(lambda: grown, 'end of the worker')
    home.close()
    assert 0 <= grown[0] * 64 < 4096, len(much)         # kB
