"""bgpd: one small daemon per Kubernetes node that adds routes, masquerade and policy to the CNI it runs."""

__version__ = "0.1.0"
