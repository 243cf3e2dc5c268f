"""A batch job that serves: replicas on the nodes that Slurm gives, and HAProxy on the first of them."""

from __future__ import annotations

import shlex

from llm_ops.deploy.settings import Deployment
from llm_ops.service.haproxy import REPLICAS, RULES


def files(deployment: Deployment) -> dict[str, str]:
    """`serve.sbatch`."""
    gpus = f"#SBATCH --gpus-per-task={deployment.gpus}\n" if deployment.gpus else ""
    key = f': "${{{deployment.key_variable}:?give the API key in this variable}}"\n' if deployment.key_secret else ""
    return {
        "serve.sbatch": f"""#!/bin/bash
# A service of {deployment.replicas} replicas: `sbatch serve.sbatch`. Give partition, account and time on the command
# line. Callers ask the first node's port {deployment.port + 1000}.
#SBATCH --job-name={deployment.name}
#SBATCH --ntasks={deployment.replicas}
#SBATCH --cpus-per-task={deployment.cpus}
#SBATCH --mem-per-cpu={-(-1024 * deployment.memory_gb // deployment.cpus)}M
{gpus}#SBATCH --requeue
#SBATCH --signal=B:TERM@{deployment.stop_seconds + 30}
set -euo pipefail
{key}
# A replica listens on a port of its own: two may share a node. The others of the cluster can reach it: that is why it
# wants a key.
srun --kill-on-bad-exit=0 bash -c \\
    'port=$(({deployment.port} + SLURM_PROCID)); echo "$(hostname):$port" > "replica-$SLURM_JOB_ID-$SLURM_PROCID";
     exec {shlex.join(deployment.command()).replace(f"--port {deployment.port}", "--port $port")}' &
serving=$!
trap 'kill -TERM $serving; wait $serving' TERM

until [ "$(ls replica-"$SLURM_JOB_ID"-* 2>/dev/null | wc -l)" = {deployment.replicas} ]; do sleep 1; done
{{
    cat <<'END'
{RULES}
frontend callers
    bind :{deployment.port + 1000}
    default_backend replicas

{REPLICAS.rstrip()}
END
    for file in replica-"$SLURM_JOB_ID"-*; do
        printf '    server %s %s\\n' "${{file##*/}}" "$(cat "$file")"
    done
}} > "haproxy-$SLURM_JOB_ID.cfg"
haproxy -f "haproxy-$SLURM_JOB_ID.cfg" &
wait $serving
"""
    }
