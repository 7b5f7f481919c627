"""Kubernetes objects as whole, typed snapshots, from an API server or from a directory of manifests."""
