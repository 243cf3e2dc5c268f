"""Watching a service: what its numbers say, alarms made of it, and the same for Prometheus and Grafana."""
