"""A Folsom tree's own l3 agent, as to one router; run by Python 2.7 with the pins, in the tree:

    l3_agent.py DO ROUTER OPTION=VALUE...       DO: added, destroyed

Each run is an agent that has just started and knows nothing of the runs before. What it holds for the
router's proxy in the end is printed as JSON: `pid`, and whether that is `active`. The agent is not made
as a whole: that would unplug the interfaces of every router on the machine.
"""
import gettext
import json
import sys

gettext.install('l3_agent', unicode=1)
sys.path.insert(0, '.')

from quantum.agent import l3_agent  # noqa: E402
from quantum.agent.common import config  # noqa: E402
from quantum.agent.linux import external_process  # noqa: E402


def agent(options):
    conf = config.setup_conf()
    conf.register_opts(l3_agent.L3NATAgent.OPTS)
    conf.register_opts(external_process.OPTS)
    for name, value in options.items():
        conf.set_override(name, value)
    made = l3_agent.L3NATAgent.__new__(l3_agent.L3NATAgent)
    made.conf, made.router_info = conf, {}
    return made


def main(do, router_id, *settings):
    made = agent(dict(setting.split('=', 1) for setting in settings))
    router = l3_agent.RouterInfo(router_id, made.conf.root_helper, True)
    if do == 'added':
        made._router_added(router_id)
    elif do == 'destroyed':
        made._destroy_metadata_proxy(router)
    else:
        sys.exit('what is %s?' % do)
    process = external_process.ProcessManager(made.conf, router_id, made.conf.root_helper, router.ns_name())
    json.dump({'pid': process.pid, 'active': process.active}, sys.stdout)


if __name__ == '__main__':
    main(*sys.argv[1:])
