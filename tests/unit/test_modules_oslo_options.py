"""oslo_options: sets what it is told to, and leaves every other byte of nova.conf alone."""
import os
import stat
import sys

import pytest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import ansible_module  # noqa: E402

ansible_module.needs_ansible()

CONF = u"""\
# nova.conf of a Folsom cloud, \u00fcberall
[DEFAULT]
sql_connection = mysql://nova:db-hunter2@db/nova
 verbose=True
service_quantum_metadata_proxy=False
# service_quantum_metadata_proxy = True

[keystone_authtoken]
service_quantum_metadata_proxy = untouched
admin_password = ks-hunter2
"""


@pytest.fixture
def conf(tmpdir):
    path = tmpdir.join('nova.conf')
    path.write_binary(CONF.encode('utf-8'))
    os.chmod(str(path), 0o640)
    return path


def run(conf, check=False, **arguments):
    return ansible_module.run('oslo_options', dict(arguments, path=str(conf)), check=check)


def text(conf):
    return conf.read_binary().decode('utf-8')


def test_an_option_is_set_where_it_stands_and_nothing_else_changes(conf):
    result = run(conf, options={'service_quantum_metadata_proxy': 'True'})
    assert result['changed']
    assert text(conf) == CONF.replace(u'metadata_proxy=False', u'metadata_proxy = True')
    assert stat.S_IMODE(os.stat(str(conf)).st_mode) == 0o640


def test_a_second_run_changes_nothing(conf):
    arguments = dict(options={'service_quantum_metadata_proxy': True, 'new': 'a = b'},
                     secrets={'quantum_metadata_proxy_shared_secret': 'x:y=z'})
    assert run(conf, **arguments)['changed']
    after, inode = text(conf), os.stat(str(conf)).st_ino
    assert not run(conf, **arguments)['changed']
    assert (text(conf), os.stat(str(conf)).st_ino) == (after, inode)


def test_what_is_there_in_another_spelling_is_left_as_it_is(conf):
    assert not run(conf, options={'service_quantum_metadata_proxy': 'False'})['changed']
    assert text(conf) == CONF


def test_a_new_option_goes_to_the_end_of_its_section(conf):
    run(conf, options={'metadata_workers': '2'})
    assert text(conf) == CONF.replace(u'proxy = True\n\n', u'proxy = True\nmetadata_workers = 2\n\n')


def test_a_new_section_goes_to_the_end(conf):
    run(conf, section='neutron', options={'service_metadata_proxy': 'True'})
    assert text(conf) == CONF + u'\n[neutron]\nservice_metadata_proxy = True\n'


def test_of_several_the_last_counts_and_the_others_go(tmpdir):
    conf = tmpdir.join('nova.conf')
    conf.write('[DEFAULT]\na = 1\nb = 2\n[x]\na = 3\n[DEFAULT]\na = 4\n')
    run(conf, options={'a': '5'})
    assert conf.read() == '[DEFAULT]\nb = 2\n[x]\na = 3\n[DEFAULT]\na = 5\n'


def test_a_name_that_begins_alike_is_another_option(tmpdir):
    conf = tmpdir.join('nova.conf')
    conf.write('[DEFAULT]\nsecret_file = x\nmy_secret = y\n')
    run(conf, options={'secret': 'z'})
    assert conf.read() == '[DEFAULT]\nsecret_file = x\nmy_secret = y\nsecret = z\n'


def test_check_mode_says_what_it_would_do_and_does_nothing(conf):
    result = run(conf, check=True, options={'service_quantum_metadata_proxy': 'True'})
    assert result['changed']
    assert 'service_quantum_metadata_proxy = True' in result['diff']['after']
    assert text(conf) == CONF


def test_bytes_of_any_encoding_and_line_end_stay(tmpdir):
    conf = tmpdir.join('nova.conf')
    conf.write_binary(b'# \xe4\x0c\xc2\x85\r\n[DEFAULT]\r\na = 1\r\nb = 2')
    run(conf, options={'b': u'\xe4'})
    assert conf.read_binary() == b'# \xe4\x0c\xc2\x85\r\n[DEFAULT]\r\na = 1\r\nb = \xc3\xa4\n'
    assert not run(conf, options={'a': 1, 'b': u'\xe4'})['changed']


def test_no_secret_is_in_what_is_said(conf):
    for secret in ('old-hunter2', 'new-hunter2'):
        result = run(conf, secrets={'quantum_metadata_proxy_shared_secret': secret},
                     options={'service_quantum_metadata_proxy': 'True'})
        assert result['changed']
        assert result['diff']['before'] != result['diff']['after']
        assert 'hunter2' not in result.text, 'neither this secret nor those that the file has besides'
    assert 'quantum_metadata_proxy_shared_secret = new-hunter2\n' in text(conf)


def test_a_file_that_is_not_there_is_named(tmpdir):
    result = run(tmpdir.join('missing.conf'), options={'a': 'b'})
    assert result['failed']
    assert result['msg'] == '%s: cannot be read: No such file or directory' % tmpdir.join('missing.conf')


def test_the_need_to_restart_outlives_a_run_that_was_cut_short(conf):
    mark = conf.dirpath('mark')
    arguments = dict(options={'service_quantum_metadata_proxy': 'True'}, mark=str(mark))
    assert run(conf, check=True, **arguments)['restart'] and not mark.check()
    assert run(conf, **arguments)['restart']
    again = run(conf, **arguments)
    assert not again['changed'] and again['restart']
    os.unlink(str(mark))
    assert not run(conf, **arguments)['restart']


def test_an_option_that_must_not_be_there_goes_and_is_named(tmpdir):
    conf = tmpdir.join('l3_agent.ini')
    conf.write('[DEFAULT]\nmetadata_ip = 10.1.1.1\n# metadata_ip =\nx = 1\n[x]\nmetadata_ip = 2\n')
    result = run(conf, absent=['metadata_ip', 'nothing'])
    assert result['changed'] and result['removed'] == ['metadata_ip']
    assert conf.read() == '[DEFAULT]\n# metadata_ip =\nx = 1\n[x]\nmetadata_ip = 2\n'
    again = run(conf, absent=['metadata_ip', 'nothing'])
    assert not again['changed'] and again['removed'] == []


def test_what_was_there_before_the_first_change_is_kept_and_comes_back(conf, tmpdir):
    backup, before = tmpdir.join('kept', 'nova.conf'), conf.read_binary()
    first = dict(options={'verbose': 'False'}, absent=['missing'], backup=str(backup))
    second = dict(first, options={'verbose': 'False', 'debug': 'True'})
    run(conf, **first)
    run(conf, **second)
    assert backup.read_binary() == before
    assert stat.S_IMODE(os.stat(str(backup)).st_mode) == 0o600
    assert run(conf, check=True, state='reverted', **second)['changed']
    assert backup.check()
    result = run(conf, state='reverted', **second)
    assert result['changed'] and not result['edited'] and not backup.check()
    assert 'hunter2' not in result.text
    assert conf.read_binary() == before
    assert stat.S_IMODE(os.stat(str(conf)).st_mode) == 0o640
    assert not run(conf, state='reverted', **second)['changed']


def test_a_backup_that_is_to_be_kept_puts_the_file_back_again_and_again(conf, tmpdir):
    backup, before = tmpdir.join('kept', 'nova.conf'), conf.read_binary()
    arguments = dict(options={'verbose': 'False'}, backup=str(backup))
    run(conf, **arguments)
    reverted = dict(arguments, state='reverted', keep_backup=True)
    assert run(conf, **reverted)['changed'] and not run(conf, **reverted)['changed']
    assert conf.read_binary() == before == backup.read_binary()


def test_of_a_file_that_others_changed_since_our_options_alone_are_reverted(conf, tmpdir):
    arguments = dict(options={'verbose': 'False', 'debug': 'True'}, absent=['state_path'],
                     backup=str(tmpdir.join('kept')))
    conf.write('[DEFAULT]\nstate_path = /var\n  /lib\ndebug = False\n')
    run(conf, **arguments)
    assert conf.read() == '[DEFAULT]\ndebug = True\nverbose = False\n'
    conf.write(conf.read() + 'mine = 1\n[new]\n')
    result = run(conf, state='reverted', **arguments)
    assert result['edited'] and result['changed'] and not tmpdir.join('kept').check()
    assert sorted(conf.read().splitlines()) == sorted([
        '[DEFAULT]', 'state_path = /var', '  /lib', 'debug = False', 'mine = 1', '[new]'])
    assert conf.read().index('state_path = /var\n  /lib\n') < conf.read().index('[new]')
    assert not run(conf, state='reverted', **arguments)['changed']


def test_a_value_of_several_lines_is_one_value(tmpdir):
    conf = tmpdir.join('l3_agent.ini')
    conf.write('[DEFAULT]\na = 1\n  2\n\t3\nb = 4\n')
    run(conf, options={'a': '5'})
    assert conf.read() == '[DEFAULT]\na = 5\nb = 4\n'
    conf.write('[DEFAULT]\na = 1\n  2\n\n  \nb = 4\n')
    run(conf, absent=['a'])
    assert conf.read() == '[DEFAULT]\n\n  \nb = 4\n'


def test_a_link_stays_a_link(conf, tmpdir):
    link = tmpdir.join('link.conf')
    link.mksymlinkto(conf)
    run(link, options={'debug': 'True'})
    assert link.islink() and 'debug = True' in text(conf)
