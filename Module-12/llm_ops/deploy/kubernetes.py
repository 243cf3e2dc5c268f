"""Objects of Kubernetes for a service: replicas, their address, what may stop them, and who may talk to them."""

from __future__ import annotations

from typing import Any

import yaml  # type: ignore[import-untyped]

from llm_ops.deploy.settings import Deployment


def objects(deployment: Deployment) -> list[dict[str, Any]]:
    """The objects, in the order in which they are made."""
    name, labels = deployment.name, {"app": deployment.name}
    waiting = "vllm:num_requests_waiting" if deployment.engine == "vllm" else "llm_serve_num_requests_waiting"
    return [
        {
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name, "labels": labels},
            "spec": {
                "replicas": deployment.replicas, "selector": {"matchLabels": labels},
                # One more before one fewer: there is never less room than before.
                "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
                "progressDeadlineSeconds": deployment.start_seconds + 120,
                "template": {
                    "metadata": {"labels": labels, "annotations": {
                        "prometheus.io/scrape": "true", "prometheus.io/port": str(deployment.port)}},
                    "spec": _pod(deployment),
                },
            },
        },
        {
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "labels": labels},
            "spec": {"type": "ClusterIP", "selector": labels,
                     "ports": [{"name": "http", "port": 80, "targetPort": "http"}]},
        },
        {
            "apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": name},
            "spec": {"maxUnavailable": 1, "selector": {"matchLabels": labels}},
        },
        {
            # By what waits, which says that there is too much; a GPU that is busy says nothing of it.
            "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": name},
            "spec": {
                "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": name},
                "minReplicas": deployment.replicas, "maxReplicas": deployment.most_replicas,
                "metrics": [{"type": "Pods", "pods": {
                    "metric": {"name": waiting},
                    "target": {"type": "AverageValue", "averageValue": str(max(1, deployment.max_num_seqs // 4))}}}],
                "behavior": {"scaleDown": {"stabilizationWindowSeconds": 600}},
            },
        },
        {
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": name},
            "spec": {
                "podSelector": {"matchLabels": labels}, "policyTypes": ["Ingress", "Egress"],
                "ingress": [{"ports": [{"protocol": "TCP", "port": deployment.port}]}],
                "egress": [],  # the weights are there: a model has nobody to call
            },
        },
    ]  # fmt: skip


def _pod(deployment: Deployment) -> dict[str, Any]:
    limits: dict[str, Any] = {"cpu": deployment.cpus, "memory": f"{deployment.memory_gb}Gi"}
    if deployment.gpus:
        limits["nvidia.com/gpu"] = deployment.gpus
    key = {"name": deployment.key_variable,
           "valueFrom": {"secretKeyRef": {"name": deployment.key_secret, "key": "key"}}}  # fmt: skip
    health = {"httpGet": {"path": "/health", "port": "http"}}
    container = {
        "name": "engine", "image": deployment.image, "command": deployment.command(),
        "ports": [{"name": "http", "containerPort": deployment.port}],
        "env": [{"name": "HF_HOME", "value": "/models"}, {"name": "HF_HUB_OFFLINE", "value": "1"},
                *([key] if deployment.key_secret else [])],
        "resources": {"requests": limits, "limits": limits},
        # Until the weights are read nobody asks whether it lives; then a dead one is started again, and one that is not
        # ready gets no caller.
        "startupProbe": {**health, "periodSeconds": 5, "failureThreshold": -(-deployment.start_seconds // 5)},
        "readinessProbe": {**health, "periodSeconds": 2, "failureThreshold": 2},
        "livenessProbe": {**health, "periodSeconds": 10, "failureThreshold": 6},
        # Callers are sent elsewhere some seconds after a replica is told to end: it listens for so long.
        "lifecycle": {"preStop": {"exec": {"command": ["sleep", "5"]}}},
        "volumeMounts": [{"name": "models", "mountPath": "/models", "readOnly": True},
                         {"name": "tmp", "mountPath": "/tmp"}, {"name": "shm", "mountPath": "/dev/shm"}],
        "securityContext": {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True,
                            "capabilities": {"drop": ["ALL"]}},
    }  # fmt: skip
    return {
        "terminationGracePeriodSeconds": deployment.stop_seconds + 15,
        "automountServiceAccountToken": False,
        "securityContext": {"runAsNonRoot": True, "runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [container],
        "volumes": [
            {"name": "models", "persistentVolumeClaim": {"claimName": f"{deployment.name}-models", "readOnly": True}},
            {"name": "tmp", "emptyDir": {}},
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "2Gi"}},
        ],
    }


def files(deployment: Deployment) -> dict[str, str]:
    """`kubernetes.yaml`, for `kubectl apply -f`; the claim with the weights and the secret must be there."""
    return {"kubernetes.yaml": str(yaml.safe_dump_all(objects(deployment), sort_keys=False, width=110))}
