"""A container, and a machine with several of them: replicas, HAProxy and Prometheus, by compose."""

from __future__ import annotations

from typing import Any

import yaml  # type: ignore[import-untyped]

from llm_ops.deploy.settings import Deployment
from llm_ops.service.haproxy import REPLICAS, RULES
from llm_ops.watch.alarms import alarms, prometheus_rules
from llm_ops.watch.prometheus import configuration, dashboard


def containerfile() -> str:
    """An image of `llm-serve`, built in the repository's folder: `podman build -t localhost/llm-serve:1 .`."""
    return """# An image of llm-serve. Build it in the repository's folder.
FROM python:3.11-slim
RUN pip install --no-cache-dir uv==0.13.9
WORKDIR /course
COPY . .
# The CPU build of torch; leave the first line out on a machine with GPUs. Without dev: neither tests nor trl.
ENV UV_TORCH_BACKEND=cpu
RUN uv venv && uv pip install --no-cache . && useradd --create-home served
# Weights come from outside: an image without them is small, and the same for every model.
ENV PATH=/course/.venv/bin:$PATH HF_HOME=/models COURSE_CACHE=/tmp/course
USER served
EXPOSE 8000
ENTRYPOINT []
CMD ["llm-serve", "--help"]
"""


def compose(deployment: Deployment) -> str:
    """`compose.yaml`: replicas r1, r2, ...; HAProxy alone is reached from the machine, and from it only."""
    service: dict[str, Any] = {
        "image": deployment.image,
        "command": deployment.command(),
        "environment": {deployment.key_variable: "${API_KEY:?give API_KEY}"} if deployment.key_secret else {},
        "volumes": ["./models:/models:ro"],
        "read_only": True,
        "tmpfs": ["/tmp"],
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
        "stop_grace_period": f"{deployment.stop_seconds + 10}s",
        "restart": "unless-stopped",
        "deploy": {"resources": {"limits": {"cpus": str(deployment.cpus), "memory": f"{deployment.memory_gb}g"}}},
        "healthcheck": {
            "test": ["CMD", "python3", "-c", f"import urllib.request as u; u.urlopen('http://127.0.0.1:{deployment.port}/health')"],
            "interval": "5s", "start_period": f"{deployment.start_seconds}s",
        },
    }  # fmt: skip
    if deployment.gpus:
        device = {"driver": "nvidia", "count": deployment.gpus, "capabilities": ["gpu"]}
        service["deploy"]["resources"]["reservations"] = {"devices": [device]}
    names = [f"r{number}" for number in range(1, deployment.replicas + 1)]
    whole = {
        "name": deployment.name,
        "services": {
            **{name: service for name in names},
            "proxy": {
                "image": "docker.io/library/haproxy:2.6",
                "volumes": ["./haproxy.cfg:/usr/local/etc/haproxy/haproxy.cfg:ro"],
                "ports": ["127.0.0.1:8000:8000"], "depends_on": names, "restart": "unless-stopped",
            },
            "prometheus": {
                "image": "docker.io/prom/prometheus:v2.42.0", "ports": ["127.0.0.1:9090:9090"],
                "volumes": [f"./{name}:/etc/prometheus/{name}:ro" for name in ("prometheus.yml", "alarms.yml")],
                "restart": "unless-stopped",
            },
        },
    }  # fmt: skip
    return str(yaml.dump(whole, Dumper=_Plain, sort_keys=False, width=140))


class _Plain(yaml.SafeDumper):
    """Writes each part out: an anchor that stands for a whole service is hard to read."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def haproxy(deployment: Deployment) -> str:
    """`haproxy.cfg` for the containers: the rules are those of `llm_ops.service.haproxy`."""
    servers = "\n".join(
        f"    server r{n} r{n}:{deployment.port} resolvers names init-addr none"
        for n in range(1, deployment.replicas + 1)
    )
    return f"""global
    maxconn 4096

{RULES}
resolvers names
    parse-resolv-conf

frontend callers
    bind :8000
    http-request deny deny_status 413 if {{ req.body_size gt 4000000 }}
    # Numbers are for Prometheus, which asks the replicas themselves.
    http-request deny deny_status 404 if {{ path /metrics }}
    default_backend replicas

{REPLICAS}{servers}
"""


def files(deployment: Deployment) -> dict[str, str]:
    """Each file of a machine by its name.

    Raises:
        ValueError: for another engine: alarms that look at names it does not have would never fire.
    """
    if deployment.engine != "llm-serve":
        raise ValueError(
            f"engine={deployment.engine}: compose's alarms and dashboard are of llm-serve's names; "
            "take the target kubernetes, ray or slurm"
        )
    targets = [f"r{number}:{deployment.port}" for number in range(1, deployment.replicas + 1)]
    return {
        "Containerfile": containerfile(),
        "compose.yaml": compose(deployment),
        "haproxy.cfg": haproxy(deployment),
        "prometheus.yml": configuration(targets, "/etc/prometheus/alarms.yml"),
        "alarms.yml": prometheus_rules(alarms()),
        "dashboard.json": dashboard(deployment.name),
    }
