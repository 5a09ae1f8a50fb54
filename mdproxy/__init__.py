"""The metadata service (169.254.169.254) for tenants whose addresses overlap: namespace proxy and agent.

Layers, imports go down only: `http1`, `trust`, `config` | `eventloop`, `upstream`, `server`, `ports`,
`namespaces`, `rules` | `proxy`, `agent` | `cli`.
"""

__version__ = '0.1.0'
