"""Measurements: ours and what an operator would use instead, side by side in one run on one machine.

`tests/bench NAME` runs one. The order of reading: `report` (what a result is), `stage` (network, API server),
`contenders` (who is measured), `installation` (how it is installed), then a file for each thing that is measured,
and `routes`, which names them. For masquerade it is `masq_stage` and `masq_contenders`, then what is measured, and
`masq`.
"""
