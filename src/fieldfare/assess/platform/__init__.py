"""The platform people have: URLs, model registries, feature tables, Prometheus, and runs laid beside forecasts.

Here: file back ends that need nothing, adapters that are imported when they are used. Not here: what artefacts mean.
"""

from fieldfare.assess.platform.places import fetch, is_url, local, send

__all__ = ["fetch", "is_url", "local", "send"]
