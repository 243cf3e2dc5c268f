"""The files with which a service is put on a machine, a cluster of Slurm, or Kubernetes, from one configuration."""
