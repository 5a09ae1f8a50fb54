"""What a module on the controller is at: the callback mdproxy_progress tells it, as a module cannot speak."""
import os


def note(text):
    """Leave this word, in the place of the one before. Where nobody asked for it nothing happens."""
    folder = os.environ.get('MDPROXY_PROGRESS', '')
    if os.path.isdir(folder):
        with open(os.path.join(folder, 'note-%d' % os.getpid()), 'w', encoding='utf-8') as out:
            out.write(text)
