"""A service of several replicas: a balancer, health, a rollout, alarms, and the files of HAProxy and Prometheus."""
