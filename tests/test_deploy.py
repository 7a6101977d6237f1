"""What is in deploy/ names what exists, and passes the tools that will read it."""

import json
import os
import re
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from prometheus_client import CollectorRegistry, ProcessCollector
from ruamel.yaml import YAML
from typer.main import get_command

from shieldgate.batch.pool import Pool, parse_pool
from shieldgate.cli import app
from shieldgate.gateway.operations import router
from shieldgate.given_settings import variable
from shieldgate.settings import ServeSettings, WorkerSettings
from shieldgate.telemetry import Telemetry

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
RULES = DEPLOY / "prometheus/rules.yml"
BOARD = DEPLOY / "grafana/boards/shieldgate.json"
LOCK = ROOT / "requirements.lock"
COMPOSE = ROOT / "docker-compose.yml"


def read(path: Path) -> Any:
    return YAML(typ="safe").load(path)


def manifests(folder: str) -> dict[str, dict[str, Any]]:
    """The manifests of a folder by their kind; kustomize's own files are left out."""
    found = map(read, (DEPLOY / "kubernetes" / folder).glob("*.yaml"))
    return {one["kind"]: one for one in found if one["kind"] != "Kustomization"}


def alerts() -> list[dict[str, Any]]:
    return [rule for group in read(RULES)["groups"] for rule in group["rules"] if "alert" in rule]


def expressions() -> Iterator[str]:
    """All that asks Prometheus for something: rules, the board's panels and its variables."""
    for group in read(RULES)["groups"]:
        yield from (rule["expr"] for rule in group["rules"])
    board = json.loads(BOARD.read_text(encoding="utf-8"))
    for panel in board["panels"]:
        yield from (target["expr"] for target in panel.get("targets", ()))
    for listed in board["templating"]["list"]:
        if listed["type"] == "query":
            yield listed["query"]["query"]


def series() -> dict[str, set[str]]:
    """The names that a gateway exports, each with its labels."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    Telemetry(registry)
    known: dict[str, set[str]] = {"up": {"job", "instance"}}
    for metric in registry.collect():
        collector = registry._names_to_collectors.get(metric.name)
        labels = {"job", "instance", *getattr(collector, "_labelnames", ())}
        suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}
        for suffix in suffixes.get(metric.type, ("",)):
            known[metric.name + suffix] = labels | ({"le"} if suffix == "_bucket" else set())
    for group in read(RULES)["groups"]:
        for rule in group["rules"]:
            if "record" in rule:
                [by, *_] = re.findall(r"by \(([^)]*)\)", rule["expr"])
                known[rule["record"]] = set(re.split(r",\s*", by)) - {"le"}
    return known


def test_every_metric_and_label_that_rules_and_board_name_exists() -> None:
    known = series()
    asked = [
        found
        for expression in expressions()
        for found in re.findall(
            r"\b((?:shieldgate|process)[_:][\w:]+|up)\b(?:\{([^}]*)\})?", expression
        )
    ]
    assert len(asked) > 40
    for name, selector in asked:
        assert name in known, name
        labels = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", selector))
        assert labels <= known[name], f"{name} has no {labels - known[name]}"


def test_every_value_of_a_label_that_rules_name_is_documented() -> None:
    documented = (ROOT / "docs/metrics.md").read_text(encoding="utf-8")
    for expression in expressions():
        for label, values in re.findall(
            r'(outcome|phase|result|reason|breaker)=~?"([^"]*)"', expression
        ):
            for value in values.replace("redis_.*", "redis_read|redis_write").split("|"):
                assert f"| `{label}` | `{value}` |" in documented


def test_every_alert_has_a_summary_a_severity_and_a_section_in_the_runbook() -> None:
    assert alerts()
    for alert in alerts():
        assert alert["labels"]["severity"] in ("page", "ticket")
        assert alert["annotations"]["summary"]
        where, _, anchor = alert["annotations"]["runbook_url"].partition("#")
        assert where == "{{ $externalLabels.runbook }}"
        text = (DEPLOY / "runbook.md").read_text(encoding="utf-8")
        sections = re.findall(r"^## (\w+)$", text, re.M)
        assert alert["alert"] in sections
        assert anchor == alert["alert"].lower()
        assert sections == [each["alert"] for each in alerts()]


def test_every_alert_is_tested_to_fire_and_to_be_quiet() -> None:
    tests = read(DEPLOY / "prometheus/rules_test.yml")["tests"]
    tested = [
        (t["alertname"], bool(t.get("exp_alerts")))
        for test in tests
        for t in test["alert_rule_test"]
    ]
    for alert in alerts():
        assert {(alert["alert"], True), (alert["alert"], False)} <= set(tested)


def test_every_link_of_the_documents_leads_somewhere() -> None:
    for document in (DEPLOY / "runbook.md", DEPLOY / "README.md"):
        text = document.read_text(encoding="utf-8")
        for link in re.findall(r"\]\(([^)]+)\)", text):
            if not link.startswith("http"):
                path, _, anchor = link.partition("#")
                target = (document.parent / path) if path else document
                assert target.exists(), link
                headings = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.M)
                assert not anchor or anchor in {h.lower().replace(" ", "-") for h in headings}, link


def test_every_variable_with_our_prefix_is_a_setting() -> None:
    known = {variable(f) for m in (ServeSettings, WorkerSettings) for f in m.model_fields}
    files = [ROOT / "Dockerfile", COMPOSE, *(p for p in DEPLOY.rglob("*") if p.is_file())]
    named = {
        v for file in files for v in re.findall(r"SHIELDGATE_[A-Z_]+", file.read_text("utf-8"))
    }
    assert len(named) > 8
    assert named <= known


def test_the_manifests_fit_together() -> None:
    base = manifests("base")
    deployment = base["Deployment"]
    name = deployment["metadata"]["name"]
    template = deployment["spec"]["template"]
    labels = template["metadata"]["labels"]
    for selector in (
        deployment["spec"]["selector"]["matchLabels"],
        base["Service"]["spec"]["selector"],
        base["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        base["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
    ):
        assert selector.items() <= labels.items()
    scaler = base["HorizontalPodAutoscaler"]["spec"]
    assert (
        scaler["scaleTargetRef"]["name"]
        == name
        == manifests("gpu")["Deployment"]["metadata"]["name"]
    )
    assert scaler["metrics"][0]["pods"]["metric"]["name"] in series()
    listed = set(read(DEPLOY / "kubernetes/base/kustomization.yaml")["resources"])
    files = {path.name for path in (DEPLOY / "kubernetes/base").glob("*.yaml")}
    assert files - {"kustomization.yaml"} == listed


def test_the_pod_is_probed_where_something_answers_and_may_do_little() -> None:
    pod = manifests("base")["Deployment"]["spec"]["template"]["spec"]
    assert pod["enableServiceLinks"] is False
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    [container] = pod["containers"]
    [port] = container["ports"]
    assert port["containerPort"] == ServeSettings().port
    paths = {route.path for route in router.routes}
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"]["path"] in paths
        assert container[probe]["httpGet"]["port"] == port["name"]
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert container["securityContext"]["capabilities"]["drop"] == ["ALL"]
    leave = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] > leave + ServeSettings().drain_seconds


def test_the_image_runs_as_nobody_in_particular_and_watches_its_health() -> None:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    base = text[text.index(" AS base\n") :]
    assert re.search(r"^USER \d+$", base, re.M)
    assert "HEALTHCHECK" in base
    assert 'ENTRYPOINT ["shieldgate"]' in base
    assert re.findall(r"^FROM (.+)$", base, re.M) == ["base AS gateway", "base"]
    allowed = {
        line[1:]
        for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
        if line.startswith("!")
    }
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.M)
    sources = {source.removeprefix("./") for line in copied for source in line.split()}
    assert sources == allowed
    assert all((ROOT / source).exists() for source in sources)


def test_what_the_image_installs_is_locked_by_hashes_and_suits_the_project() -> None:
    locked = dict(
        re.findall(r"^([\w.-]+)==(\S+) \\\n    --hash=sha256:", LOCK.read_text("utf-8"), re.M)
    )
    assert len(locked) == len(re.findall(r"^\w", LOCK.read_text("utf-8"), re.M)) > 50
    assert not any(n.startswith(("nvidia", "torch")) for n in locked), "torch is the build's choice"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    pinned = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    installed = [line for extra in ("local", "otel", "review") for line in extras[extra]]
    for line in [*project["dependencies"], *installed, *pinned]:
        if line.startswith("#") or line.startswith("torch"):
            continue
        wanted = Requirement(line)
        assert wanted.specifier.contains(locked[canonicalize_name(wanted.name)]), line


def tool(*command: str | Path, **environment: str) -> str:
    """Run a tool that a bare machine doesn't have, and give what it printed."""
    if shutil.which(str(command[0])) is None:
        pytest.skip(f"needs {command[0]}; .ci/run installs it")
    done = subprocess.run(
        command,
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@cache
def applied(folder: str) -> list[dict[str, Any]]:
    """What `kubectl apply -k` gives to the cluster."""
    built = tool("kubectl", "kustomize", DEPLOY / "kubernetes" / folder)
    return list(YAML(typ="safe").load_all(built))


def test_promtool_finds_nothing_and_the_alerts_fire_when_they_should(tmp_path: Path) -> None:
    tool("promtool", "check", "rules", "--lint=all", RULES)
    # The key is where Compose mounts it.
    config = (DEPLOY / "prometheus/prometheus.yml").read_text(encoding="utf-8")
    [mounted] = re.findall(r"credentials_file: (\S+)", config)
    assert f":-/dev/null}}:{mounted}:ro" in COMPOSE.read_text(encoding="utf-8")
    shutil.copy(RULES, tmp_path)
    (tmp_path / "prometheus.yml").write_text(config.replace(mounted, os.devnull), encoding="utf-8")
    tool("promtool", "check", "config", tmp_path / "prometheus.yml")
    tool("promtool", "test", "rules", DEPLOY / "prometheus/rules_test.yml")


def test_every_query_of_the_board_is_one(tmp_path: Path) -> None:
    board = json.loads(BOARD.read_text(encoding="utf-8"))
    queries = [t["expr"] for panel in board["panels"] for t in panel.get("targets", ())]
    filled = [re.sub(r"\$\w+", ".*", q.replace("$__rate_interval", "5m")) for q in queries]
    rules = [{"record": f"query_{n}", "expr": query} for n, query in enumerate(filled)]
    # JSON is YAML.
    file = tmp_path / "board.yml"
    file.write_text(json.dumps({"groups": [{"name": "board", "rules": rules}]}), encoding="utf-8")
    assert f"{len(queries)} rules found" in tool("promtool", "check", "rules", file)


@cache
def composed(profile: str) -> dict[str, Any]:
    """What Compose makes of the services of a profile."""
    told = tool(
        *("docker-compose", "--file", COMPOSE, "--profile", profile, "config"),
        SHIELDGATE_CACHE_SECRET="0123456789abcdef",
    )
    services = YAML(typ="safe").load(told)["services"]
    return {name: s for name, s in services.items() if profile in s.get("profiles", [profile])}


@pytest.mark.parametrize(
    ("profile", "gateway", "models", "upstream"),
    [
        ("cpu", "gateway", set(), ""),
        ("gpu", "gateway-gpu", set(), ""),
        ("cpu-chat", "gateway-chat", {"worker"}, "http://worker:8001/v1"),
        ("gpu-chat", "gateway-gpu-chat", {"worker-gpu"}, "http://worker:8001/v1"),
        ("vllm", "gateway-vllm", {"scorer", "generator"}, "http://generator:8000/v1"),
    ],
)
def test_compose_reads_every_profile_and_each_has_one_gateway(
    profile: str, gateway: str, models: set[str], upstream: str
) -> None:
    services = composed(profile)
    running = services.keys()
    assert running == {gateway, "redis", "prometheus", "grafana"} | models
    for name in running:
        service = services[name]
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert "default" not in service["networks"], name
    assert set(services["redis"]["networks"]) == {"cache"}
    environment = services[gateway]["environment"]
    assert environment["SHIELDGATE_UPSTREAM"] == upstream
    assert "SHIELDGATE_AUDIT_SECRET" in environment


@pytest.mark.parametrize("file", ["Dockerfile", "deploy/kubernetes/ray/Dockerfile"])
def test_hadolint_finds_nothing(file: str) -> None:
    assert tool("hadolint", file) == ""


@pytest.mark.parametrize("folder", ["base", "gpu", "vllm", "gke"])
def test_what_is_applied_is_what_kubernetes_takes(folder: str, tmp_path: Path) -> None:
    core = [m for m in applied(folder) if m["kind"] != "PodMonitoring"]
    file = tmp_path / "applied.yaml"
    file.write_text("\n---\n".join(map(json.dumps, core)), encoding="utf-8")  # JSON is YAML
    assert tool("kubernetes-validate", "--strict", file).count(" passed for ") == len(core)


def test_who_may_come_and_where_to_is_applied_as_it_is_written() -> None:
    written = manifests("base")["NetworkPolicy"]
    assert found(applied("base"), "NetworkPolicy")["shieldgate"]["spec"] == written["spec"]


def found(manifests: list[dict[str, Any]], kind: str) -> dict[str, dict[str, Any]]:
    return {m["metadata"]["name"]: m for m in manifests if m["kind"] == kind}


def adapted() -> dict[str, str]:
    """The metrics that prometheus-adapter gives to the autoscalers, and their series."""
    rules = read(DEPLOY / "kubernetes/prometheus-adapter.yaml")["rules"]["custom"]
    named = ((rule["seriesQuery"].partition("{")[0], rule.get("name", {})) for rule in rules)
    return {name.get("as", series): series for series, name in named}


def test_each_part_of_the_topology_is_scaled_by_a_metric_that_somebody_exports() -> None:
    metrics = adapted()
    assert all(s in series() for s in metrics.values() if s.startswith("shieldgate_"))
    assert metrics["vllm_num_requests_waiting"] == "vllm:num_requests_waiting"
    for folder in ("base", "gpu", "vllm", "gke"):
        manifests = applied(folder)
        for name, scaler in found(manifests, "HorizontalPodAutoscaler").items():
            target = scaler["spec"]["scaleTargetRef"]
            scaled = found(manifests, target["kind"])[target["name"]]
            assert "replicas" not in scaled["spec"], "or each deployment would undo the scaling"
            assert name == target["name"]
            for metric in scaler["spec"]["metrics"]:
                if metric["type"] != "Pods":
                    continue
                followed = metric["pods"]["metric"]["name"]
                if folder == "gke":
                    source, followed, kind = followed.split("|")
                    assert (source, kind) == ("prometheus.googleapis.com", "gauge")
                    assert followed in metrics.values()
                else:
                    assert followed in metrics
    scalers = found(applied("vllm"), "HorizontalPodAutoscaler")
    assert scalers.keys() == {"shieldgate", "scorer", "generator"}


def test_gateways_know_every_scorer_that_the_autoscaler_may_make() -> None:
    manifests = applied("vllm")
    [config] = found(manifests, "ConfigMap").values()
    given = {k.removeprefix("SHIELDGATE_").lower(): v for k, v in config["data"].items()}
    scorer = found(manifests, "StatefulSet")["scorer"]
    service = found(manifests, "Service")[scorer["spec"]["serviceName"]]
    assert service["spec"]["clusterIP"] == "None", "so that each has a name"
    most = found(manifests, "HorizontalPodAutoscaler")["scorer"]["spec"]["maxReplicas"]
    [port] = (one["port"] for one in service["spec"]["ports"])
    servers = tuple(f"http://scorer-{n}.scorer:{port}/v1" for n in range(most))
    settings = ServeSettings(**given)
    assert settings.servers == servers
    [container] = scorer["spec"]["template"]["spec"]["containers"]
    assert settings.tokenizer == container["command"][-1]
    assert settings.redis_url is not None
    for name, url in (
        ("generator", str(settings.upstream)),
        ("redis", settings.redis_url.get_secret_value()),
    ):
        asked = urlsplit(url)
        ports = {p["port"] for p in found(manifests, "Service")[name]["spec"]["ports"]}
        assert (asked.hostname, asked.port in ports) == (name, True)


def reached(manifests: list[dict[str, Any]], labels: dict[str, str]) -> list[dict[str, str]]:
    """The labels of those in the namespace who may come to pods with these labels."""
    peers = []
    for policy in found(manifests, "NetworkPolicy").values():
        spec = policy["spec"]
        if "Ingress" in spec["policyTypes"]:
            wanted = spec["podSelector"].get("matchLabels")
            if wanted is not None and wanted.items() <= labels.items():
                peers += [p for rule in spec["ingress"] for p in rule["from"]]
    return [p["podSelector"]["matchLabels"] for p in peers if "namespaceSelector" not in p]


def test_only_gateways_reach_the_models_and_redis_and_they_reach_all_three() -> None:
    manifests = applied("vllm")
    workloads = found(manifests, "StatefulSet") | found(manifests, "Deployment")
    pods = {name: w["spec"]["template"]["metadata"]["labels"] for name, w in workloads.items()}
    assert pods.keys() == {"scorer", "generator", "redis", "shieldgate"}
    gateway = pods.pop("shieldgate")
    for labels in pods.values():
        [peer] = reached(manifests, labels)
        assert peer["app.kubernetes.io/component"] == "gateway"
        assert peer.items() <= gateway.items()
    egress = [
        p["podSelector"]["matchLabels"]
        for policy in found(manifests, "NetworkPolicy").values()
        if policy["spec"]["podSelector"]["matchLabels"].items() <= gateway.items()
        for rule in policy["spec"].get("egress", ())
        for p in rule["to"]
        if "podSelector" in p and "namespaceSelector" not in p
    ]
    for name, labels in pods.items():
        assert any(peer.items() <= labels.items() for peer in egress), name
    for name, service in found(manifests, "Service").items():
        assert service["spec"]["selector"].items() <= {**pods, "shieldgate": gateway}[name].items()


@pytest.mark.parametrize(
    ("name", "kind"),
    [("scorer", "StatefulSet"), ("generator", "StatefulSet"), ("redis", "Deployment")],
)
def test_compose_and_kubernetes_start_the_same(name: str, kind: str) -> None:
    pod = found(applied("vllm"), kind)[name]["spec"]["template"]["spec"]
    [container] = pod["containers"]
    service = composed("vllm")[name]
    command = [*(service.get("entrypoint") or ()), *service["command"]]
    if "--gpu-memory-utilization" in command:  # two may share a GPU there
        command = command[:-2]
    assert [*container.get("command", ()), *container["args"]] == command
    assert container["image"] == service["image"]
    told = {one["name"]: one["value"] for one in container.get("env", ()) if "value" in one}
    assert told.items() <= service.get("environment", {}).items()
    if kind == "StatefulSet":
        leave = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
        drains = "--shutdown-timeout" in command
        finishing = int(command[command.index("--shutdown-timeout") + 1]) if drains else 10
        assert pod["terminationGracePeriodSeconds"] > leave + finishing


def ray_pods() -> dict[str, Any]:
    cluster = manifests("ray")["RayJob"]["spec"]["rayClusterSpec"]
    groups = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    groups["head"] = cluster["headGroupSpec"]
    return {name: group["template"] for name, group in groups.items()}


def test_the_ray_job_runs_a_command_of_ours_on_the_ray_of_its_image() -> None:
    spec = manifests("ray")["RayJob"]["spec"]
    program, command, *words = shlex.split(spec["entrypoint"])
    assert program == "shieldgate"
    parsed = get_command(app).commands[command].make_context(command, words).params
    assert parse_pool(parsed["actors"], cpus=None, gpus=parsed["actor_gpus"]) == Pool(1, 8, gpus=1)
    [group] = spec["rayClusterSpec"]["workerGroupSpecs"]
    assert group["maxReplicas"] == 8
    [container] = group["template"]["spec"]["containers"]
    assert int(container["resources"]["limits"]["nvidia.com/gpu"]) == parsed["actor_gpus"]
    image = (DEPLOY / "kubernetes/ray/Dockerfile").read_text(encoding="utf-8")
    assert f"FROM rayproject/ray:{spec['rayClusterSpec']['rayVersion']}-" in image


@pytest.mark.parametrize("name", list(ray_pods()))
def test_the_pods_of_the_ray_job_are_what_kubernetes_takes(name: str, tmp_path: Path) -> None:
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, **ray_pods()[name]}
    file = tmp_path / "pod.yaml"
    file.write_text(json.dumps(pod), encoding="utf-8")
    assert "passed" in tool("kubernetes-validate", "--strict", file)
