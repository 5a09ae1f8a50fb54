"""Ways to break off what changes files, and what is in folders, to compare before and after."""
import contextlib
import os
import signal
import stat

# All by which files are changed.
CALLS = ('open', 'rename', 'unlink', 'mkdir', 'rmdir', 'symlink', 'fsync', 'fchmod', 'utime')


def snapshot(*folders):
    """{path: what can be known of it} of all that is below the folders; folders' times aside."""
    found = {}
    for top in folders:
        for folder, folders_in, names in os.walk(str(top)):
            for name in folders_in + names:
                path = os.path.join(folder, name)
                state = os.lstat(path)
                seen = [stat.S_IFMT(state.st_mode), stat.S_IMODE(state.st_mode), state.st_uid, state.st_gid]
                if stat.S_ISLNK(state.st_mode):
                    seen.append(os.readlink(path))
                elif stat.S_ISREG(state.st_mode):
                    with open(path, 'rb') as content:
                        seen += [state.st_mtime, content.read()]
                found[path] = tuple(seen)
    return found


@contextlib.contextmanager
def at_call(number, action, ever_after=False):
    """Do something at the so manieth change of a file; gives the names of the calls that were made."""
    seen, calls = [], dict((name, getattr(os, name)) for name in CALLS)

    def counted(name):
        def replacement(*arguments, **named):
            if name != 'open' or arguments[1] & os.O_CREAT:     # where opening makes a file
                seen.append(name)
                if len(seen) == number or ever_after and len(seen) > number > 0:
                    action()
            return calls[name](*arguments, **named)
        return replacement

    for name in CALLS:
        setattr(os, name, counted(name))
    try:
        yield seen
    finally:
        for name in CALLS:
            setattr(os, name, calls[name])


def killed(act):
    """Whether a child that does this is killed; it must not fail."""
    child = os.fork()
    if not child:
        try:
            act()
        except BaseException as end:
            os._exit(0 if isinstance(end, SystemExit) and not end.code else 1)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert status in (0, signal.SIGKILL)
    return status == signal.SIGKILL


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def killed_at(number, act):
    """Whether a child that does this is killed at its so manieth change of a file."""
    def act_and_die():
        with at_call(number, die):
            act()
    return killed(act_and_die)


def failing(error):
    def fail():
        raise OSError(error, os.strerror(error))
    return fail
