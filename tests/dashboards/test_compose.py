"""The compose file and what it mounts: valid, and of one mind with the code and the other files."""

import os
import re
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml

from learnmech.collector.service.settings import DEFAULT_PORT, ENVIRONMENT
from learnmech.collector.store import VIEWS
from learnmech.dashboards.grafana import names

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def compose() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))


def _yaml(path: str) -> Any:
    return yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))


def _environment(service: dict[str, Any]) -> dict[str, str]:
    return service.get("environment", {})


def test_compose_is_valid_by_the_specification() -> None:
    outcome = subprocess.run(
        [
            sys.executable,
            "-m",
            "check_jsonschema",
            "--builtin-schema",
            "vendor.compose-spec",
            ROOT / "docker-compose.yml",
        ],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr


def test_services_are_the_promised_ones(compose: dict[str, Any]) -> None:
    assert set(compose["services"]) == {"postgres", "migrate", "reader", "collector", "prometheus", "grafana"}


def test_secrets_volumes_and_networks_exist_and_are_used(compose: dict[str, Any]) -> None:
    services = compose["services"].values()
    assert {secret for service in services for secret in service.get("secrets", [])} == set(compose["secrets"])
    assert {network for service in services for network in service["networks"]} == set(compose["networks"])
    named = {
        mount.split(":")[0] for service in services for mount in service.get("volumes", []) if not mount.startswith(".")
    }
    assert named == set(compose["volumes"])
    readme = (ROOT / "secrets/README.md").read_text(encoding="utf-8")
    for name, secret in compose["secrets"].items():
        assert secret["file"] == f"./secrets/{name}"
        assert f"| `{name}` |" in readme
    users = {
        name: {service for service, body in compose["services"].items() if name in body.get("secrets", [])}
        for name in compose["secrets"]
    }
    for row in re.findall(r"^\| `(\w+)` \| ([^|]+) \|", readme, re.MULTILINE):
        assert users[row[0]] == set(row[1].split(", ")), "the README says who reads a secret"


def test_secret_files_are_read_only_where_the_secret_is_mounted(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        read = set(re.findall(r"/run/secrets/(\w+)", str(service)))
        if name == "prometheus":
            read |= set(re.findall(r"/run/secrets/(\w+)", str(_yaml("dashboards/prometheus/prometheus.yml"))))
        if name == "grafana":
            read |= set(
                re.findall(
                    r"/run/secrets/(\w+)", str(_yaml("dashboards/grafana/provisioning/datasources/learnmech.yaml"))
                )
            )
        assert read == set(service.get("secrets", []))


def test_mounted_paths_exist_and_are_mounted_read_only(compose: dict[str, Any]) -> None:
    for service in compose["services"].values():
        for mount in service.get("volumes", []):
            source, _, mode = mount.split(":") if mount.count(":") == 2 else (*mount.split(":"), "")
            if source.startswith("."):
                assert (ROOT / source).exists(), source
                assert mode == "ro"
        if "build" in service:
            assert (ROOT / service["build"]["dockerfile"]).is_file()


def test_ports_are_on_loopback_and_images_are_pinned(compose: dict[str, Any]) -> None:
    for service in compose["services"].values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
        assert re.search(r":(v?\d+\.\d+|local)", service["image"])
    for line in (ROOT / "collector/Dockerfile").read_text(encoding="utf-8").splitlines():
        if line.startswith("FROM"):
            assert re.search(r":\d+\.\d+\.\d+-", line)


def test_long_lived_services_have_health_checks_limits_and_few_rights(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        assert service["deploy"]["resources"]["limits"]["memory"]
        assert "no-new-privileges:true" in service["security_opt"]
        if service["restart"] != "no":
            assert service["healthcheck"]["test"]
        if name != "postgres":  # its entry point changes owners before it gives up root
            assert service["cap_drop"] == ["ALL"]
            assert service["read_only"] is True


def test_database_is_on_an_internal_network_and_comes_first(compose: dict[str, Any]) -> None:
    assert compose["networks"]["store"] == {"internal": True}
    services = compose["services"]
    assert services["postgres"]["networks"] == ["store"]
    assert "ports" not in services["postgres"]
    assert services["migrate"]["depends_on"] == {"postgres": {"condition": "service_healthy"}}
    for later in ("collector", "reader"):
        assert services[later]["depends_on"]["migrate"] == {"condition": "service_completed_successfully"}
    assert services["grafana"]["depends_on"]["reader"] == {"condition": "service_completed_successfully"}


def test_environment_names_are_the_collectors_settings(compose: dict[str, Any]) -> None:
    entrypoint = (ROOT / "collector/entrypoint.sh").read_text(encoding="utf-8")
    for name in ("collector", "migrate"):
        for variable in _environment(compose["services"][name]):
            assert variable in ENVIRONMENT or f"${{{variable}:-}}" in entrypoint
    dockerfile = (ROOT / "collector/Dockerfile").read_text(encoding="utf-8")
    assert set(re.findall(r"LEARNMECH_\w+", dockerfile)) <= set(ENVIRONMENT)


def test_prometheus_scrapes_the_collectors_port(compose: dict[str, Any]) -> None:
    collector = compose["services"]["collector"]
    assert int(_environment(collector)["LEARNMECH_PORT"]) == DEFAULT_PORT
    assert collector["ports"] == [f"127.0.0.1:{DEFAULT_PORT}:{DEFAULT_PORT}"]
    scrape = _yaml("dashboards/prometheus/prometheus.yml")
    assert scrape["scrape_configs"][0]["static_configs"] == [{"targets": [f"collector:{DEFAULT_PORT}"]}]
    mounts = " ".join(compose["services"]["prometheus"]["volumes"])
    assert all(f":{path}:ro" in mounts for path in [*scrape["rule_files"], "/etc/prometheus/prometheus.yml"])
    assert f"EXPOSE {DEFAULT_PORT}" in (ROOT / "collector/Dockerfile").read_text(encoding="utf-8")


def test_alerts_name_metrics_that_exist() -> None:
    from learnmech.collector.service.metrics import Metrics

    declared = set(re.findall(r"^# TYPE (\w+)", Metrics("test").render().decode(), re.MULTILINE))
    for group in _yaml("dashboards/prometheus/rules.yml")["groups"]:
        for rule in group["rules"]:
            assert set(re.findall(r"learnmech_\w+", rule["expr"])) <= declared
            assert rule["annotations"]["summary"]
            assert rule["annotations"]["description"]


def test_grafana_reads_the_store_as_the_reader(compose: dict[str, Any]) -> None:
    sources = {s["uid"]: s for s in _yaml("dashboards/grafana/provisioning/datasources/learnmech.yaml")["datasources"]}
    store = sources[names.POSTGRES_UID]
    environment = _environment(compose["services"]["postgres"])
    assert store["user"] == "learnmech_reader"
    assert store["jsonData"]["database"] == environment["POSTGRES_DB"]
    assert (
        "postgresql://{POSTGRES_USER}@postgres:5432/{POSTGRES_DB}".format_map(environment)
        == _environment(compose["services"]["collector"])["LEARNMECH_DB"]
    )
    provider = _yaml("dashboards/grafana/provisioning/dashboards/learnmech.yaml")["providers"][0]
    mounts = compose["services"]["grafana"]["volumes"]
    assert f"./dashboards/grafana:{provider['options']['path']}:ro" in mounts
    home = _environment(compose["services"]["grafana"])["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert (ROOT / "dashboards/grafana" / Path(home).name).is_file()


@pytest.mark.postgres
def test_the_reader_reads_every_public_view_and_nothing_else(
    filled_postgres: tuple[str, dict[str, str]], psql: Path
) -> None:
    url, _ = filled_postgres
    for password in ("first 'password'", "second"):  # run again after every migration, possibly with a new password
        outcome = subprocess.run(
            [psql, "--no-psqlrc", "--set=ON_ERROR_STOP=1", f"--set=reader_password={password}",
             f"--file={ROOT / 'dashboards/postgres/reader.sql'}", url],
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert outcome.returncode == 0, outcome.stderr
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("SET SESSION AUTHORIZATION learnmech_reader")
        for view in VIEWS:
            connection.execute(f"SELECT * FROM {view} LIMIT 1")
        for statement in ("SELECT * FROM point", "SELECT * FROM run", "CREATE TABLE mine (a int)", "DELETE FROM runs"):
            with pytest.raises(psycopg.Error):
                connection.execute(statement)
    with psycopg.connect(url, autocommit=True) as connection:
        settings = connection.execute(
            "SELECT unnest(rolconfig) FROM pg_roles WHERE rolname = 'learnmech_reader'"
        ).fetchall()
    assert ("statement_timeout=30s",) in settings


def test_entry_point_hands_over_the_password(tmp_path: Path) -> None:
    script = ROOT / "collector/entrypoint.sh"
    assert script.stat().st_mode & stat.S_IXUSR
    (tmp_path / "password").write_text("it's secret\n", encoding="utf-8")
    (tmp_path / "learnmech").write_text('#!/bin/sh\nprintf "%s|" "$PGPASSWORD" "$@"\n', encoding="utf-8")
    (tmp_path / "learnmech").chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"

    def start(**environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [script, "db", "upgrade"], env={"PATH": path, **environment}, capture_output=True, text=True, timeout=30
        )

    assert start(PGPASSWORD_FILE=str(tmp_path / "password")).stdout == "it's secret|db|upgrade|"
    refused = start(PGPASSWORD_FILE=str(tmp_path / "nowhere"))
    assert refused.returncode == 1
    assert "secrets/README.md" in refused.stderr


def test_no_secret_is_committed() -> None:
    ignored = (ROOT / "secrets/.gitignore").read_text(encoding="utf-8").split()
    assert ignored == ["*", "!.gitignore", "!README.md"]
