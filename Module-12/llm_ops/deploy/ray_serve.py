"""vLLM replicas under Ray Serve: an engine's own way to many GPUs and several models, from the same configuration."""

from __future__ import annotations

from typing import Any

import yaml  # type: ignore[import-untyped]

from llm_ops.deploy.settings import Deployment


def configuration(deployment: Deployment) -> dict[str, Any]:
    """What `serve run` and `serve deploy` take.

    Raises:
        ValueError: for an engine that Ray Serve does not start.
    """
    if deployment.engine != "vllm":
        raise ValueError(f"engine={deployment.engine}: Ray Serve starts vLLM; set engine: vllm, or take another target")
    model = {
        "model_loading_config": {"model_id": deployment.name, "model_source": deployment.model},
        "engine_kwargs": {"tensor_parallel_size": deployment.gpus, "max_num_seqs": deployment.max_num_seqs},
        "deployment_config": {
            "autoscaling_config": {
                "min_replicas": deployment.replicas, "max_replicas": deployment.most_replicas,
                "target_ongoing_requests": max(1, 3 * deployment.max_num_seqs // 4),
            },
            "graceful_shutdown_timeout_s": deployment.stop_seconds,
        },
    }  # fmt: skip
    return {
        "http_options": {"host": "127.0.0.1", "port": deployment.port},
        "applications": [{
            "name": deployment.name, "route_prefix": "/",
            "import_path": "ray.serve.llm:build_openai_app", "args": {"llm_configs": [model]},
        }],
    }  # fmt: skip


def files(deployment: Deployment) -> dict[str, str]:
    """`ray.yaml`: `serve run ray.yaml`."""
    return {"ray.yaml": str(yaml.safe_dump(configuration(deployment), sort_keys=False, width=110))}
