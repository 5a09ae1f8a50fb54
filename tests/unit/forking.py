"""What the tests of forked processes share: a loop in this thread, which signals need."""
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from mdproxy import children, eventloop  # noqa: E402

DEADLINE = 10.0     # seconds after which a test that waits has failed
_LOOK = 0.005


class Home(object):
    """A loop and the children of this process, for a test's time."""

    def __init__(self):
        self.loop = eventloop.Loop()
        self.children = children.Children(self.loop)

    def until(self, condition, what):
        """Run the loop until condition() is true; that value. Fails the test when it never is."""
        ends, values = self.loop.now + DEADLINE, []

        def look():
            value = condition()
            if value or self.loop.now > ends:
                values.append(value)
                self.loop.stop()
            else:
                self.loop.call_later(_LOOK, look)
        look()
        if not values:
            self.loop.run()
        self.loop._stopped = False
        assert values[0], 'not within %g s: %s' % (DEADLINE, what)
        return values[0]

    def close(self):
        self.loop.close()
