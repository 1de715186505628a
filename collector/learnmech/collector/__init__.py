"""The collector: stores what probes measure, judges it by the laws, serves it."""
