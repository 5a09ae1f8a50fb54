"""How much one guest may ask."""
from mdproxy import limits


def passed(rate, address, times):
    return [rate.allows(address, now) for now in times]


def test_a_burst_passes_and_then_the_rate():
    rate = limits.RateLimit(10, 5)
    assert passed(rate, '10.0.0.3', [100.0] * 7) == [True] * 5 + [False] * 2
    assert passed(rate, '10.0.0.3', [100.1, 100.1, 100.2]) == [True, False, True]


def test_what_was_refused_does_not_count():
    rate = limits.RateLimit(1, 1)
    assert passed(rate, 'a', [0.0] + [0.5] * 100 + [1.0]) == [True] + [False] * 100 + [True]


def test_every_address_has_its_own_share():
    rate = limits.RateLimit(1, 1)
    assert all(rate.allows(address, 0.0) for address in ('10.0.0.3', '10.0.0.4', 'fe80::1'))
    assert not rate.allows('fe80::1', 0.1)


def test_in_the_long_run_the_rate_holds():
    rate = limits.RateLimit(20, 50)
    count = sum(rate.allows('a', number * 0.001) for number in range(10000))
    assert 50 + 20 * 10 - 1 <= count <= 50 + 20 * 10 + 1


def test_quiet_addresses_are_forgotten_and_busy_ones_are_not(monkeypatch):
    monkeypatch.setattr(limits, '_GUESTS', 100)
    rate = limits.RateLimit(1, 1)
    assert all(rate.allows(number, 0.0) for number in range(99))
    assert rate.allows('busy', 10.0)
    assert all(rate.allows(number, 10.5) for number in range(1000, 1050))
    assert len(rate._full_at) <= 100
    assert not rate.allows('busy', 10.6)
