"""What a training step takes on devices: measured, or as FLINT's table 5 has it (`paper`)."""

from __future__ import annotations
