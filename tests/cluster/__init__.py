"""Tests against a real kube-apiserver and etcd; `controlplane.py` is the class they share."""
