"""The metadata service (169.254.169.254) for tenants whose addresses overlap: namespace proxy and agent.

Imports go down only; docs/architecture.md has the floors.
"""

__version__ = '0.1.0'
