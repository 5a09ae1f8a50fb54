"""How much one guest may ask."""

_GUESTS = 65536         # addresses remembered


class RateLimit(object):
    """At most `rate` requests per second of one address, and `burst` at once.

    Kept for each address is the one time at which its bucket will be full again (the generic cell
    rate algorithm, ITU-T I.371), so that an address costs one number, and none when it is quiet.
    """

    def __init__(self, rate, burst):
        self._interval = 1.0 / rate
        self._tolerance = (burst - 1) * self._interval
        self._full_at = {}

    def allows(self, address, now):
        """Whether a request of this address (any hashable) may pass; then it counts. now: seconds."""
        full_at = max(self._full_at.get(address, now), now)
        # Sums of intervals are not exact; a millionth of one is no request.
        if full_at - now > self._tolerance + self._interval * 1e-6:
            return False
        if len(self._full_at) >= _GUESTS and address not in self._full_at:
            self._forget(now)
        self._full_at[address] = full_at + self._interval
        return True

    def _forget(self, now):
        """Make room: those that are quiet, or all when so many are not, which is not one guest."""
        busy = dict(item for item in self._full_at.items() if item[1] > now)
        self._full_at = busy if len(busy) < _GUESTS else {}
