"""FedFly: devices train a split model with an edge server, and the session follows them when they move.

Ullah, Wu, Harvey, Kilpatrick, Spence & Varghese, IEEE Communications Magazine 60(11) 2022 (arXiv 2111.01516). Roles:
`central` (rounds, aggregation, who owns which session), `edge` (the server half of each session it owns; source and
destination of moves at once) and `device` (data and the device half). Pure parts: `session` (all an edge knows of a
device, and its bytes), `tensors` (the encoding), `tickets` (ownership), `policies` (how a session follows). An edge's
own parts: `serve` (batches), `leave` (a session goes), `arrive` (a session comes). What is ours and what the paper's
is said where it stands; the published code cannot run its own migration, so the protocol is ours.
"""

from __future__ import annotations
