"""Pure reductions and server chains over parameter vectors."""
