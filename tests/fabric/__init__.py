"""Tests on a real fabric: network namespaces, real BGP speakers, real packets.

The modules here without `test_` in their name are a library for the tests and the demo;
none of them knows the daemon. The order of reading: `netns`, `process`, `peer`, one speaker,
`observe`, `topology`.
"""
