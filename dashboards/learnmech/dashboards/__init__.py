"""Dashboards: every panel declared once, drawn by Grafana and by the built-in page.

- `learnmech.dashboards.panels`: the declarations; frozen data, no renderer.
- `learnmech.dashboards.grafana`: functions that turn them into Grafana's JSON.
- `learnmech.dashboards.page`: the live page that the collector serves at `/`.
"""
