"""What is in folders, to compare before and after."""
import os
import stat


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
