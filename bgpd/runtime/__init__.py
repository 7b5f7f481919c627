"""The machinery every subsystem runs on: newest-snapshot stores, the diff, and the one reconcile loop."""
