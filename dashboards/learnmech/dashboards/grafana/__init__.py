"""Grafana: the declared panels as classic dashboard JSON, to be provisioned from files and never edited by hand.

>>> [name.removesuffix(".json") for name in files()]
['overview', 'edge-of-stability', 'gradient-noise-scale', 'rotational-equilibrium', 'operations']
"""

import json

from learnmech.dashboards.grafana.dashboards import everything


def files() -> dict[str, str]:
    """Return the text of every dashboard file by its name."""
    return {
        name: json.dumps(dashboard, ensure_ascii=False, indent=2, sort_keys=True) + "\n"
        for name, dashboard in everything().items()
    }


__all__ = ["files"]
