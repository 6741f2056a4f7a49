"""Alerts, dashboard and scaling ask for what the service really measures, and a real Prometheus understands them."""

import contextlib
import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import promql_parser
import pytest
import requests
import yaml
from promql_parser import AggregateExpr, Expr, Matcher, MatchOp, VectorSelector

from tests.integration.clients import post_raw
from tests.integration.reference import REPOSITORY, photographs
from tests.integration.service_process import ServiceProcess, wait_for
from tests.ports import unused_port

PROMETHEUS = REPOSITORY / "configs" / "prometheus"
ALERTS = yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())["groups"][0]["rules"]
DASHBOARD = json.loads((REPOSITORY / "configs" / "grafana" / "dashboard.json").read_text())
COMPONENTS = REPOSITORY / "configs" / "kubernetes" / "components"
# What Grafana fills in when all replicas are shown, and what prometheus-adapter does when asked for a pod's metric.
VARIABLES = {
    "$__rate_interval": "1m",
    "$job": ".*",
    "$instance": ".*",
    "<<.GroupBy>>": "pod",
    "<<.LabelMatchers>>": 'namespace="embed",pod=~"embed-.*"',
}
# Not to be had from a service on a CPU; its scrape announces it all the same.
ONLY_ON_CUDA = "embed_encoder_memory_bytes"
LABELS_OF_PROMETHEUS = {"job": "image-embedding", "instance": "127.0.0.1:8002"}
LABELS_OF_A_POD_MONITOR = {"namespace": "embed", "pod": "embed-0"}
needs_prometheus = pytest.mark.skipif(
    not (shutil.which("prometheus") and shutil.which("promtool")), reason="needs prometheus and promtool on the PATH"
)


class Series(NamedTuple):
    """One line of a scrape, as Prometheus stores it."""

    name: str
    labels: Mapping[str, str]


def _filled_in(expression: str) -> str:
    for name, value in VARIABLES.items():
        expression = expression.replace(name, value)
    return expression


def _expressions() -> dict[str, str]:
    """All expressions by where they stand."""
    found = {rule["alert"]: rule["expr"] for rule in ALERTS}
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            found[f"{panel['title']} {target['refId']}"] = _filled_in(target["expr"])
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            selector, label = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["definition"]).groups()  # type: ignore[union-attr]
            found[f"variable {variable['name']}"] = f"count by ({label}) ({_filled_in(selector)})"
    return found


def _scaling_expressions() -> dict[str, str]:
    """Those by which KEDA and prometheus-adapter scale, also by where they stand."""
    keda = yaml.safe_load((COMPONENTS / "keda" / "scaled-object.yaml").read_text())["spec"]["triggers"]
    adapter = yaml.safe_load((COMPONENTS / "hpa" / "prometheus-adapter.yaml").read_text())["rules"]["custom"]
    found = {f"keda {index}": trigger["metadata"]["query"] for index, trigger in enumerate(keda)}
    for rule in adapter:
        found[f"adapter's series of {rule['name']['as']}"] = rule["seriesQuery"]
        found[f"adapter's {rule['name']['as']}"] = _filled_in(rule["metricsQuery"])
    return found


SCALING = _scaling_expressions()
EXPRESSIONS = {**_expressions(), **SCALING}


def _read(scrape: str) -> list[Series]:
    series = [Series("up", LABELS_OF_PROMETHEUS)]
    for name, labels in re.findall(r"^([a-z]\w*)(?:\{(.*)\})? ", scrape, re.MULTILINE):
        series.append(Series(name, {**dict(re.findall(r'(\w+)="(.*?)"', labels)), **LABELS_OF_PROMETHEUS}))
    if f"# TYPE {ONLY_ON_CUDA} gauge" in scrape:
        series.append(Series(ONLY_ON_CUDA, {"device": "cuda:0", **LABELS_OF_PROMETHEUS}))
    return series


@pytest.fixture(scope="module")
def series(running: ServiceProcess) -> list[Series]:
    """What the running service gives Prometheus after a good and a bad image."""
    assert [post_raw(running, image).status_code for image in (photographs()[0], b"no image")] == [200, 400]
    return _read(running.metrics())


def _matches(matcher: Matcher, labels: Mapping[str, str]) -> bool:
    value = labels.get(matcher.name, "")
    if matcher.op in (MatchOp.Equal, MatchOp.NotEqual):
        matches = value == matcher.value
    else:
        matches = re.fullmatch(matcher.value, value) is not None
    return matches is (matcher.op in (MatchOp.Equal, MatchOp.Re))


def _problem(expression: str, series: list[Series]) -> str | None:
    """Why the expression cannot give anything on these series; None where it can."""
    problems: list[str] = []
    known = set(LABELS_OF_A_POD_MONITOR)  # elsewhere, what is grouped by them is one group

    def look_at_selector(node: Expr) -> None:
        if isinstance(node, VectorSelector):
            named = [each for each in series if each.name == node.name]
            labels = {label for each in named for label in each.labels}
            matchers = node.matchers.matchers
            known.update(labels)
            problems.extend(f"{node.name} has no label {each.name}" for each in matchers if each.name not in labels)
            if not any(all(_matches(matcher, each.labels) for matcher in matchers) for each in named):
                problems.append(f"there is no series {node.prettify()}")

    def look_at_labels(node: Expr) -> None:
        if isinstance(node, AggregateExpr) and node.modifier:
            problems.extend(f"nothing has a label {label}" for label in node.modifier.labels if label not in known)

    try:
        promql_parser.walk(promql_parser.parse(expression), look_at_selector, look_at_labels)
    except ValueError as error:
        return str(error)
    return problems[0] if problems else None


@pytest.mark.parametrize("where", EXPRESSIONS)
def test_each_expression_asks_for_series_that_the_service_has(where: str, series: list[Series]) -> None:
    if where in SCALING:
        series = [Series(name, {**labels, **LABELS_OF_A_POD_MONITOR}) for name, labels in series]
    assert _problem(EXPRESSIONS[where], series) is None


@pytest.mark.parametrize(
    ("right", "wrong", "problem"),
    [
        ("embed_", "embedd_", "embedd_images_total has no label code"),
        ("_total", "", "embed_images has no label code"),
        ("code=", "kode=", "embed_images_total has no label kode"),
        ("internal_error", "internal_fault", "there is no series embed_images_total"),
        ("(job, instance)", "(job, host)", "nothing has a label host"),
        ("[5m]", "", "expected type"),
        ("))", ")", "unclosed"),
        ("rate(", "rat(", "unknown function"),
    ],
)
def test_a_broken_expression_is_told_apart(series: list[Series], right: str, wrong: str, problem: str) -> None:
    expression = EXPRESSIONS["EmbedInternalErrors"]
    assert _problem(expression, series) is None
    assert problem in str(_problem(expression.replace(right, wrong), series))


def test_each_alert_says_how_bad_it_is_and_what_to_do() -> None:
    for rule in ALERTS:
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
        assert rule["annotations"]["summary"] and len(rule["annotations"]["description"]) > 40
    tested = yaml.safe_load((PROMETHEUS / "alerts_test.yml").read_text())["tests"]
    names = dict.fromkeys(case["name"].partition(",")[0] for case in tested)
    assert list(names) == [rule["alert"] for rule in ALERTS]


def test_no_panel_covers_another() -> None:
    cells: list[tuple[int, int]] = []
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        columns = range(place["x"], place["x"] + place["w"])
        cells += [(x, y) for x in columns for y in range(place["y"], place["y"] + place["h"])]
    assert len(cells) == len(set(cells))
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def test_single_values_are_of_now() -> None:
    """Of the dashboard's whole range, the last one would outlive the service that it was of."""
    stats = [panel for panel in DASHBOARD["panels"] if panel["type"] == "stat"]
    assert stats and all(target.get("instant") for panel in stats for target in panel["targets"])


@needs_prometheus
def test_each_alert_is_silent_at_rest_and_fires_alone() -> None:
    assert _promtool("check", "config", "prometheus.yml") == 0
    assert _promtool("test", "rules", "alerts_test.yml") == 0


def _promtool(*arguments: str) -> int:
    return subprocess.run(["promtool", *arguments], cwd=PROMETHEUS, check=False).returncode


Ask = Callable[..., Any]


@pytest.fixture(scope="module")
def ask(running: ServiceProcess, series: list[Series], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ask]:
    """The HTTP interface of a Prometheus with our configuration that has scraped the running service for a while."""
    folder = tmp_path_factory.mktemp("prometheus")
    shutil.copy(PROMETHEUS / "alerts.yml", folder)
    text = (PROMETHEUS / "prometheus.yml").read_text().replace("15s", "1s")
    target = f'"127.0.0.1:{running.metrics_port}"]\n        labels: {json.dumps(LABELS_OF_A_POD_MONITOR)}'
    (folder / "prometheus.yml").write_text(text.replace('"127.0.0.1:8002"]', target))
    port = unused_port()
    command = ["prometheus", "--config.file=prometheus.yml", "--storage.tsdb.path=data", "--log.level=warn"]

    def get(path: str, **parameters: str) -> Any:
        answer = requests.get(f"http://127.0.0.1:{port}/api/v1/{path}", params=parameters, timeout=30).json()
        assert answer["status"] == "success", answer
        return answer["data"]

    def has_scraped_twice() -> bool:
        with contextlib.suppress(requests.ConnectionError, requests.JSONDecodeError):
            return bool(get("query", query="rate(embed_images_total[1m])")["result"])
        return False

    with subprocess.Popen([*command, f"--web.listen-address=127.0.0.1:{port}"], cwd=folder) as process:
        try:
            wait_for(has_scraped_twice)
            yield get
        finally:
            process.terminate()


@needs_prometheus
@pytest.mark.parametrize("where", EXPRESSIONS)
def test_prometheus_evaluates_each_expression(where: str, ask: Ask) -> None:
    result = ask("query", query=EXPRESSIONS[where])["result"]
    if where not in {rule["alert"] for rule in ALERTS}:
        assert result or ONLY_ON_CUDA in EXPRESSIONS[where]
    if where.startswith("keda"):
        assert len(result) == 1  # KEDA refuses more


@needs_prometheus
def test_prometheus_takes_the_rules_and_none_fires(ask: Ask) -> None:
    def rules() -> list[Any]:
        return [rule for group in ask("rules")["groups"] for rule in group["rules"]]

    wait_for(lambda: all(rule["health"] != "unknown" for rule in rules()))
    assert [(rule["name"], rule["health"]) for rule in rules()] == [(rule["alert"], "ok") for rule in ALERTS]
    assert ask("alerts")["alerts"] == []
