"""The service: takes batches over HTTP, has them judged, streams what changed, serves the page.

Light to import: `learnmech.collector.service.server` and `.app` hold what needs the collector extra.
"""
