"""Who owns an address, as the loop asks it: a cache, and one lookup under way for each key.

Rules kept:

- What was FOUND is believed for cache_ttl, and told for stale_ttl while the API does not confirm it.
  What the API does say replaces it at once: nothing stale is told over a clear answer.
- Whoever asks for the same waits for the same lookup, and nobody waits without end.
- A stale answer needs an API that fails or hangs. A queue that is long because many ask is no
  reason: behind a reused address there may be another instance.
- Routers take turns, and what is missing does not push out what is known: a guest may ask from
  many addresses.
- An API that answers nobody is found out once, not once for every lookup that waits.
- The log has one line when the API begins to fail, and one when it answers again.

Theory of operation: everything is the loop's, but `_work` and `_resolve`, which run in a few daemon
threads that are started with the first lookups. They take lookups from a queue, ask the blocking
API (portapi), and hand what it says to the loop.
"""
import collections
import logging
import sys
import threading

from .eventloop import monotonic

FOUND, NONE, MANY, ERROR = 'found', 'none', 'many', 'error'
ERROR_TTL = 1.0             # seconds until an API that failed is asked again
CACHE_SIZE = 16384          # entries
# Seconds of waiting for the API before what was known is told. An API that is well says it in 50-77
# ms; the least patient guest, cloud-init's reader for OpenStack, gives up after 5 s.
STALE_AFTER = 1.0
_PENDING = 16384            # lookups under way
_PENDING_OF_ONE = 4096      # of one router; its own guests are fewer, addresses can be made up
_FAREWELL = 0.5             # seconds that threads have to end
_PATIENCE = 3               # times api_timeout: how long anybody waits for a lookup
_CALM = 5.0                 # seconds without a failure until the API counts as well again
_LONG_AGO = -float('inf')

_log = logging.getLogger('mdproxy.ports')

# What nova is told; native strings that are plain ids.
Instance = collections.namedtuple('Instance', 'device_id tenant_id port_id')


class Outcome(collections.namedtuple('Outcome', 'reason instance detail silent')):
    """reason: FOUND, NONE, MANY or ERROR. instance: with FOUND. detail: why not, for log and
    operator. silent: an ERROR because nobody answered, so that others would not be answered either.
    """

    __slots__ = ()

    def __new__(cls, reason, instance, detail, silent=False):
        return super(Outcome, cls).__new__(cls, reason, instance, detail, silent)


class _Known(object):
    """What the API said of a key, and when. until: when to ask again. counted: as what in
    `PortLookup.outcomes` when it is told out of the cache."""

    __slots__ = ('outcome', 'at', 'until', 'counted')

    def __init__(self, outcome, at):
        self.outcome, self.at = outcome, at

    def believe(self, seconds):
        """It counts as confirmed for so long after the API said it."""
        self.until = self.at + seconds
        self.counted = 'hit' if self.outcome.reason == FOUND else self.outcome.reason


class _Lookup(object):
    """One that is under way. begun_at: when a thread took it from the queue. waiters: (what FOUND
    counts as for it, callback, args) each."""

    __slots__ = ('key', 'asked_at', 'begun_at', 'late_at', 'waiters')

    def __init__(self, key, asked_at, late_at, waiter):
        self.key, self.asked_at, self.late_at = key, asked_at, late_at
        self.begun_at, self.waiters = None, [waiter]


class _Turns(object):
    """Lookups that wait for a thread; from any thread. Each router (or network) has its own queue, and
    they take turns, so that one with many guests keeps none but its own waiting."""

    def __init__(self):
        self._changed = threading.Condition()
        self._queues = {}                       # identity -> deque of lookups, none empty
        self._turns = collections.deque()       # identities with a queue
        self._closed = False

    def put(self, lookup):
        """Add one; its key's first part is the identity."""
        identity = lookup.key[0]
        with self._changed:
            if identity not in self._queues:
                self._queues[identity] = collections.deque()
                self._turns.append(identity)
            self._queues[identity].append(lookup)
            self._changed.notify()

    def get(self):
        """Wait for the next one; None when closed."""
        with self._changed:
            while not (self._turns or self._closed):
                self._changed.wait()
            if self._closed:
                return None
            identity = self._turns.popleft()
            queue = self._queues[identity]
            lookup = queue.popleft()
            if queue:
                self._turns.append(identity)
            else:
                del self._queues[identity]
            return lookup

    def waiting(self, identity):
        """How many of an identity wait."""
        return len(self._queues.get(identity, ()))

    def close(self):
        """Let every `get` give None."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


class _Health(object):
    """How the API is, as far as lookups show it."""

    def __init__(self):
        self.state, self.error = 'unknown', ''
        self.since = self._failed_at = None

    def failed(self, now, detail):
        """A lookup has failed."""
        if self.state != 'failing':
            self.state, self.since = 'failing', now
            _log.warning('the port API fails: %s', detail)
        self._failed_at, self.error = now, detail

    def answered(self, now):
        """The API has answered. After failures that counts when there was none for _CALM: what
        fails now and then is one failure, in one line."""
        if self.state == 'ok' or self.state == 'failing' and now < self._failed_at + _CALM:
            return
        if self.state == 'failing':
            _log.warning('the port API answers again, %.0f s after it began to fail',
                         now - self.since)
        self.state, self.since = 'ok', now


class PortLookup(object):
    """What the loop asks. api: a portapi.PortApi. What is FOUND is believed for options.cache_ttl,
    NONE and MANY for options.negative_cache_ttl, ERROR for ERROR_TTL.

    outcomes: how many were told what: hit (FOUND in the cache), miss (FOUND by the lookup it began),
    shared (FOUND by joining one), stale, none, many, error.
    """

    def __init__(self, loop, api, options):
        if hasattr(sys, 'setcheckinterval'):
            # 2.7 offers the interpreter to the other threads every 100 steps, whether one waits for
            # it or not. Every 1000 costs them 50 us at most and gives the loop 6 %.
            sys.setcheckinterval(1000)
        self._loop = loop
        self._cache = collections.OrderedDict()     # key -> _Known that was FOUND, the oldest first
        self._missing = collections.OrderedDict()   # the same, of what was not FOUND
        self._under_way = {}                        # key -> _Lookup
        self._jobs = _Turns()
        self._threads = []
        self._answered_at = _LONG_AGO               # when the API last said anything
        self._health = _Health()
        self.outcomes = dict.fromkeys(
            ('hit', 'miss', 'shared', 'stale', NONE, MANY, ERROR), 0)
        self.reconfigure(api, options)

    def reconfigure(self, api, options):
        """Ask another api from the next lookup on, by other options; what is known stays known.
        Threads become more, never fewer."""
        self._api, self._timeout = api, options.api_timeout
        self._ttl = {FOUND: options.cache_ttl, NONE: options.negative_cache_ttl,
                     MANY: options.negative_cache_ttl, ERROR: ERROR_TTL}
        self._stale_ttl = options.stale_ttl
        self._patience = options.api_timeout * _PATIENCE
        self._threads_allowed = options.api_threads
        self._silence = _LONG_AGO, None             # when nobody answered, and that Outcome
        for known in list(self._cache.values()) + list(self._missing.values()):
            known.believe(self._ttl[known.outcome.reason])

    def find(self, identity, ip, mac, callback, *args):
        """callback(outcome, *args): at once when the answer is known, else later on the loop. The
        first three as for PortApi.resolve."""
        key, now = (identity, ip, mac), self._loop.now
        known = self._cache.get(key) or self._missing.get(key)
        if known is not None and now < known.until:
            self.outcomes[known.counted] += 1
            callback(known.outcome, *args)
            return
        lookup = self._under_way.get(key)
        if lookup:
            lookup.waiters.append(('shared', callback, args))
            if now >= self._hung_at(lookup) and self._is_usable(known):
                self._dismiss(lookup, known.outcome, 'stale')
        elif (len(self._under_way) < _PENDING
              and self._jobs.waiting(identity) < _PENDING_OF_ONE):
            self._begin(_Lookup(key, now, now + self._patience, ('miss', callback, args)))
        else:
            self._tell([('miss', callback, args)],
                       Outcome(ERROR, None, 'too many lookups wait for the port API'))

    def token_age(self):
        """Seconds since the present token was got; None without one."""
        return self._api.token_age()

    def health(self):
        """A dict: api ('ok', 'failing' or 'unknown'), since (for so many seconds, or None),
        last_error (text), cached (entries), waiting (requests that wait for a lookup)."""
        health = self._health
        return {'api': health.state, 'last_error': health.error,
                'since': None if health.since is None else self._loop.now - health.since,
                'cached': len(self._cache) + len(self._missing),
                'waiting': sum(len(lookup.waiters) for lookup in self._under_way.values())}

    def close(self):
        """End the threads. One that waits for the API is not waited for; it is a daemon."""
        self._jobs.close()
        end = monotonic() + _FAREWELL
        for thread in self._threads:        # else 2.7 takes the modules away under their feet
            thread.join(max(0, end - monotonic()))

    def _begin(self, lookup):
        self._under_way[lookup.key] = lookup
        self._jobs.put(lookup)
        self._loop.call_later(min(STALE_AFTER, self._patience), self._look_after, lookup)
        if len(self._threads) < self._threads_allowed:
            thread = threading.Thread(target=self._work, name='port-lookup')
            thread.daemon = True
            thread.start()
            self._threads.append(thread)

    def _work(self):
        while True:
            lookup = self._jobs.get()
            if lookup is None:
                return
            if lookup.waiters:
                self._loop.call_soon_threadsafe(self._arrived, lookup, self._resolve(lookup))
            else:
                self._loop.call_soon_threadsafe(self._left_alone, lookup)

    def _left_alone(self, lookup):
        """Nobody waited for it any more when its turn came."""
        if lookup.waiters:          # but now
            self._jobs.put(lookup)
        else:
            del self._under_way[lookup.key]

    def _resolve(self, lookup):
        """The Outcome of a lookup: that of the API, or of another that was not answered since.

        One silent call does not speak for an API that answered others in the meantime.
        """
        silent_at, failure = self._silence
        if lookup.asked_at <= silent_at:
            return failure
        api, lookup.begun_at = self._api, monotonic()
        outcome = api.resolve(*lookup.key)
        now = monotonic()
        if not outcome.silent:
            self._answered_at = now
        elif api is self._api and self._answered_at < now - self._timeout / 2:
            self._silence = now, outcome
        return outcome

    def _arrived(self, lookup, outcome):
        now, key = self._loop.now, lookup.key
        del self._under_way[key]
        if outcome.reason != ERROR:
            self._health.answered(now)
        else:
            self._health.failed(now, outcome.detail)
            known = self._cache.get(key)
            if self._is_usable(known):
                known.until = min(now + ERROR_TTL, known.at + self._stale_ttl)
                known.counted = 'stale'
                self._tell(lookup.waiters, known.outcome, 'stale')
                return
        self._cache.pop(key, None)          # so that the oldest answer stays the first
        self._missing.pop(key, None)
        cache = self._cache if outcome.reason == FOUND else self._missing
        if len(cache) >= CACHE_SIZE:
            cache.popitem(last=False)
        known = cache[key] = _Known(outcome, now)
        known.believe(self._ttl[outcome.reason])
        self._tell(lookup.waiters, outcome)

    def _is_usable(self, known):
        """Whether this may be told without being confirmed."""
        return (known is not None and known.outcome.reason == FOUND
                and self._loop.now < known.at + self._stale_ttl)

    def _hung_at(self, lookup):
        """When a lookup counts as hanging, if nothing happens: a thread waits for it, or it waits
        for a thread and no other is answered."""
        return STALE_AFTER + (lookup.begun_at or max(lookup.asked_at, self._answered_at))

    def _look_after(self, lookup):
        """Nobody waits for the timeout when something is known, or for ever. The lookup goes on, and
        who asks later may still get its answer."""
        if self._under_way.get(lookup.key) is not lookup:
            return
        now, hung_at = self._loop.now, self._hung_at(lookup)
        known = self._cache.get(lookup.key)
        if now >= hung_at and self._is_usable(known):
            self._dismiss(lookup, known.outcome, 'stale')
        if now >= lookup.late_at:
            lookup.late_at = now + self._patience
            self._dismiss(lookup,
                          Outcome(ERROR, None, 'no answer within %g s' % self._patience))
        pause = hung_at - now if now < hung_at else STALE_AFTER
        self._loop.call_later(min(pause, lookup.late_at - now), self._look_after, lookup)

    def _dismiss(self, lookup, outcome, counted=None):
        waiters, lookup.waiters = lookup.waiters, []
        self._tell(waiters, outcome, counted)

    def _tell(self, waiters, outcome, counted=None):
        for found, callback, args in waiters:
            reason = counted or (found if outcome.reason == FOUND else outcome.reason)
            self.outcomes[reason] += 1
            try:
                callback(outcome, *args)
            except Exception:
                _log.exception('error after a port lookup')
