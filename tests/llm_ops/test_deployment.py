"""The files of each target: checked by their schemas, and by what they must not let in."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from llm_ops.cli import main
from llm_ops.cost import dollars_per_million
from llm_ops.deploy import container, kubernetes, ray_serve, slurm
from llm_ops.deploy.settings import Deployment, read

from course.plan.curriculum import find_root

PLAIN = Deployment()
GPUS = Deployment(
    name="big", model="/models/34b", engine="vllm", image="docker.io/vllm/vllm-openai:v0.32.0", replicas=3,
    most_replicas=6, gpus=2, key_secret="",
)  # fmt: skip


@pytest.mark.parametrize("deployment", [PLAIN, GPUS], ids=["plain", "gpus"])
def test_kubernetes_takes_every_object(deployment):
    made = list(yaml.safe_load_all(kubernetes.files(deployment)["kubernetes.yaml"]))
    assert [each["kind"] for each in made] == [
        "Deployment", "Service", "PodDisruptionBudget", "HorizontalPodAutoscaler", "NetworkPolicy"
    ]  # fmt: skip
    for each in made:
        kubernetes_validate.validate(each, "1.31", strict=True)
    pod = made[0]["spec"]["template"]["spec"]
    engine = pod["containers"][0]
    assert engine["securityContext"]["readOnlyRootFilesystem"] and pod["securityContext"]["runAsNonRoot"]
    assert ("nvidia.com/gpu" in engine["resources"]["limits"]) == bool(deployment.gpus)
    keys = [each for each in engine["env"] if "valueFrom" in each]
    assert len(keys) == bool(deployment.key_secret)
    # A replica that reads its weights has longer than they take, and one that ends has longer than its answers take.
    startup = engine["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] >= deployment.start_seconds
    assert pod["terminationGracePeriodSeconds"] > deployment.stop_seconds + 5


def test_a_wrong_object_is_seen():
    wrong = kubernetes.objects(PLAIN)[0]
    wrong["spec"]["replica"] = 3
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, "1.31", strict=True)


@pytest.mark.parametrize("deployment", [PLAIN, replace(PLAIN, gpus=1, key_secret="")], ids=["plain", "gpus"])
def test_compose_takes_its_file_and_only_the_proxy_is_reached(deployment, tmp_path):
    file = tmp_path / "compose.yaml"
    file.write_text(container.compose(deployment))
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(file)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    services = yaml.safe_load(file.read_text())["services"]
    assert set(services) == {"r1", "r2", "proxy", "prometheus"}
    assert all(port.startswith("127.0.0.1:") for each in services.values() for port in each.get("ports", ()))
    assert all("ports" not in services[name] and services[name]["cap_drop"] == ["ALL"] for name in ("r1", "r2"))
    given = container.files(deployment)
    for each in services.values():
        for mount in each.get("volumes", ()):
            name = mount.split(":")[0].removeprefix("./")
            assert name == "models" or name in given
    assert yaml.safe_load(given["prometheus.yml"])["scrape_configs"][0]["static_configs"] == [
        {"targets": ["r1:8000", "r2:8000"]}
    ]


def test_compose_writes_no_alarms_that_cannot_fire():
    with pytest.raises(ValueError, match="llm-serve's names"):
        container.files(GPUS)


def test_the_options_are_those_of_the_server():
    """What a file starts is what `llm-serve` and vLLM's documentation know."""
    assert PLAIN.command()[:2] == ["llm-serve", "smollm2-135m"]
    from llm_serve import cli

    text = Path(cli.__file__).read_text()
    for option in PLAIN.command()[2:]:
        assert not option.startswith("--") or f'"{option}"' in text, option


def test_the_batch_script_is_bash_and_gives_each_replica_its_port():
    script = slurm.files(PLAIN)["serve.sbatch"]
    done = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert "--port $port" in script and "--port 8000" not in script and "#SBATCH --ntasks=2" in script
    assert "--gpus-per-task=2" in slurm.files(GPUS)["serve.sbatch"]


@pytest.mark.skipif(shutil.which("sbatch") is None, reason="Slurm is not installed")
def test_slurm_takes_the_script(tmp_path):
    file = tmp_path / "serve.sbatch"
    file.write_text(slurm.files(PLAIN)["serve.sbatch"])
    done = subprocess.run(["sbatch", "--test-only", str(file)], capture_output=True, text=True)
    assert "Invalid" not in done.stderr and "Unrecognized" not in done.stderr, done.stderr


@pytest.mark.services
def test_haproxy_takes_its_file(tmp_path):
    program = shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin")
    if program is None:
        pytest.skip("haproxy is not installed")
    file = tmp_path / "haproxy.cfg"
    file.write_text(container.files(PLAIN)["haproxy.cfg"])
    done = subprocess.run([program, "-c", "-f", str(file)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_ray_serve_gets_what_the_others_get():
    made = ray_serve.configuration(GPUS)
    model = made["applications"][0]["args"]["llm_configs"][0]
    assert model["engine_kwargs"] == {"tensor_parallel_size": 2, "max_num_seqs": 32}
    assert model["deployment_config"]["autoscaling_config"]["max_replicas"] == 6
    assert made["http_options"]["host"] == "127.0.0.1"
    with pytest.raises(ValueError, match="set engine: vllm"):
        ray_serve.configuration(PLAIN)


def test_the_example_is_the_defaults_and_has_every_key():
    file = find_root() / "Module-12/deployment.yaml"
    assert read(file) == PLAIN and list(yaml.safe_load(file.read_text())) == [each.name for each in fields(Deployment)]


@pytest.mark.parametrize(("text", "message"), [
    ("replica: 3", "'replica' is no setting"), ("replicas: two", "must be a whole number"), ("- a", "key: value"),
    ("replicas: true", "must be a whole number"), ("a: [", "is no YAML"), ("name: Chat", "must be of a-z"),
    ("replicas: 9", "most_replicas=4"), ("engine: tgi", "is none of"), ("engine: vllm", "gpus=0"),
    ("port: 80", "from 1024"), ("model: a b", "letters, digits"), ("model: \"x';reboot'\"", "letters, digits"),
    ("memory_gb: 0", "at least 1"), ("name: 1", "must be a text"),
])  # fmt: skip
def test_a_wrong_configuration_is_one_line(text, message, tmp_path, capsys):
    file = tmp_path / "c.yaml"
    file.write_text(text)
    assert main(["deploy", "kubernetes", "--config", str(file), "--out", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not (tmp_path / "out").exists()


@pytest.mark.parametrize("target", ["compose", "slurm", "kubernetes"])
def test_the_command_writes_and_does_not_write_over(target, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["deploy", target, "--out", str(out)]) == 0
    names = capsys.readouterr().out.split()
    assert names and all(Path(each).is_file() for each in names)
    assert main(["deploy", target, "--out", str(out)]) == 0  # the same is no loss
    Path(names[0]).write_text("mine")
    assert main(["deploy", target, "--out", str(out)]) == 1
    assert "--force" in capsys.readouterr().err and Path(names[0]).read_text() == "mine"
    assert main(["deploy", target, "--out", str(out), "--force"]) == 0 and Path(names[0]).read_text() != "mine"


def test_a_million_tokens():
    assert dollars_per_million(1000, 3.6) == pytest.approx(1.0)  # 0.001 dollars a second
    assert dollars_per_million(1000, 3.6, used=0.5) == pytest.approx(2.0)
    assert main(["cost", "--tokens_per_second", "0", "--dollars", "1"]) == 1


def test_capacity_from_a_file(tmp_path, capsys):
    file = tmp_path / "costs.json"
    file.write_text(json.dumps({"fixed": 0.03, "per_sequence": 0.004, "per_prompt_token": 0.001, "beside": 0.0}))
    assert main(shlex.split(f"capacity --costs {file} --replicas 2 --requests 200 --prompt 40 --new 10")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "requests/s" in lines[0] and len(lines) == 9
    for wrong in ("{}", "[", '{"fixed": -1, "per_sequence": 1, "per_prompt_token": 1}'):
        file.write_text(wrong)
        assert main(["capacity", "--costs", str(file)]) == 1
        assert capsys.readouterr().err.count("\n") == 1
    assert main(["capacity", "--costs", str(tmp_path / "no")]) == 1
    assert main(["measure", "http://127.0.0.1:9", "--costs", str(file)]) == 1
    assert main(["nothing"]) == 1 and main([]) == 2
