"""Settings come from a file, the environment and the command line; whatever is wrong is told in one line, by name."""

import configparser
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from pydantic import ValidationError

from service.errors import StartupFault
from service.pytriton_compat.triton import _DRAIN_SECONDS
from service.settings import Settings, load_settings

REPOSITORY = Path(__file__).parents[1]
CONFIGS = sorted((REPOSITORY / "configs" / "settings").glob("*.toml"))
PROXY = REPOSITORY / "configs/proxy/nginx.conf"
UNIT = REPOSITORY / "configs" / "systemd" / "embed.service"
INSTALLED = "/opt/embed"
END_SECONDS = 10
DEFAULTS = Settings.model_construct()


class Sources(NamedTuple):
    """Where settings come from: the lines of the file, the environment, the command line."""

    file: str = ""
    environment: str = ""
    command_line: str = ""


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[Sources], Settings]:
    """Settings of these sources alone."""

    for name in [name for name in os.environ if name.startswith("SERVICE_")]:
        monkeypatch.delenv(name)

    def from_sources(sources: Sources) -> Settings:
        for line in sources.environment.split():
            monkeypatch.setenv(*line.split("=", 1))
        arguments = sources.command_line.split()
        if sources.file:
            (tmp_path / "service.toml").write_text(sources.file)
            arguments += ["--config", str(tmp_path / "service.toml")]
        return load_settings(arguments)

    return from_sources


@pytest.mark.parametrize(
    ("sources", "lanes"),
    [
        (Sources(), 0),
        (Sources("lanes = 3"), 3),
        (Sources("", "SERVICE_LANES=4"), 4),
        (Sources("", "", "--lanes 5"), 5),
        (Sources("lanes = 3", "SERVICE_LANES=4"), 4),
        (Sources("lanes = 3", "", "--lanes 5"), 5),
        (Sources("lanes = 3", "SERVICE_LANES=4", "--lanes 5"), 5),
        (Sources("", "SERVICE_LANES=4", "--lanes=5"), 5),
    ],
)
def test_the_command_line_wins_over_the_environment_over_the_file(
    load: Callable[[Sources], Settings], sources: Sources, lanes: int
) -> None:
    settings = load(sources)
    assert settings.lanes == lanes
    # The other settings keep their defaults.
    assert settings.model_copy(update={"lanes": 0, "config": None}) == DEFAULTS


def test_each_source_adds_to_the_others(load: Callable[[Sources], Settings]) -> None:
    file = 'http_port = 9000\ngrpc_port = 9001\nbackground = "none"\nexif_orientation = false\ndevice = "cuda:0,cuda:1"'
    file += "\ncache_mb = 64\nexact_pixels = true\ncpu_threads = 3\nmax_queue_size = 7\nqueue_timeout_ms = 8"
    settings = load(Sources(file, "SERVICE_METRICS_PORT=0", "--dtype float16 --default-normalize true"))
    assert settings.ports == {"http_port": 9000, "grpc_port": 9001}
    assert (settings.dtype, settings.default_normalize, settings.exif_orientation) == ("float16", True, False)
    assert (settings.device, settings.background_rgb) == ("cuda:0,cuda:1", None)
    assert (settings.cache_mb, settings.exact_pixels, settings.cpu_threads) == (64, True, 3)
    assert (settings.max_queue_size, settings.queue_timeout_ms, settings.shutdown_grace_s) == (7, 8, 0)


def test_the_environment_may_name_the_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, load: Callable[[Sources], Settings]
) -> None:
    (tmp_path / "other.toml").write_text("lanes = 7")
    monkeypatch.setenv("SERVICE_CONFIG", str(tmp_path / "other.toml"))
    assert load(Sources()).lanes == 7


@pytest.mark.parametrize(
    ("sources", "ports"),
    [
        (Sources("grpc_port = 9001", "", "--http-port 8001"), [8001, 9001, 8002]),
        (Sources("metrics_port = 0", "SERVICE_HTTP_PORT=8002"), [8002, 8001]),
        (Sources("http_port = 8001\ngrpc_port = 8000"), [8001, 8000, 8002]),
        (Sources("grpc_port = 9001", "SERVICE_METRICS_PORT=0", "--http-port 0"), [9001]),
    ],
)
def test_ports_are_compared_when_all_sources_are_joined(
    load: Callable[[Sources], Settings], sources: Sources, ports: list[int]
) -> None:
    assert list(load(sources).ports.values()) == ports


@pytest.mark.parametrize(
    ("background", "rgb"),
    [("white", (255, 255, 255)), ("#0a0b0c", (10, 11, 12)), ("#0a0b0c80", (10, 11, 12)), ("none", None)],
)
def test_background_colours(
    load: Callable[[Sources], Settings], background: str, rgb: tuple[int, int, int] | None
) -> None:
    assert load(Sources("", "", f"--background {background}")).background_rgb == rgb


def test_help_lists_every_setting_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        load_settings(["--help"])
    assert caught.value.code == 0
    options = {part.split()[0]: " ".join(part.split()) for part in capsys.readouterr().out.split("\n  --")[1:]}
    assert set(options) == {name.replace("_", "-") for name in Settings.model_fields}
    for name, field in Settings.model_fields.items():
        option = options[name.replace("_", "-")]
        assert field.description and field.description in option
        assert f"(default: {'(none)' if field.default is None else field.default})" in option


# What each way of giving a setting makes of it, and what the line has to name.
BAD = [
    ("lanez", "3", "lanez"),
    ("http_port", "99999", "http_port"),
    ("http_port", "-1", "http_port"),
    ("http_port", "web", "http_port"),
    ("dtype", "int4", "dtype"),
    ("random_weights", "maybe", "random_weights"),
    ("background", "nocolour", "background: it must be none, the name of a colour, or #rrggbb"),
    ("device", "gpu", "device: it must be auto, cpu, cuda, or a list such as cuda:0,cuda:1"),
    ("device", "cuda:0,cpu", "device"),
    ("device", "cuda:", "device"),
    ("device", "cuda:01", "device"),
    ("device", "cuda:0,cuda:128", "device"),
    ("host", "localhost", "ipv4 address such as 127.0.0.1"),
    ("host", "::1", "host"),
    ("model_alias", "a/b", "model_alias: it must be of letters"),
    ("model_alias", "..", "model_alias"),
    ("model_alias", "Embed_Image", "model_alias"),
    ("log_level", "LOUD", "log_level"),
    ("lanes", "17", "lanes"),
    ("cpu_threads", "-1", "cpu_threads"),
    ("exact_pixels", "nearly", "exact_pixels"),
    ("cache_mb", "-1", "cache_mb"),
    ("max_batch_size", "4097", "max_batch_size"),
    ("max_image_pixels", "200000000", "max_image_pixels"),
    ("max_queue_size", "0", "max_queue_size"),
    ("max_queue_size", "5000000000", "max_queue_size"),
    ("max_image_bytes", "1000000000000000000", "max_image_bytes"),
    ("queue_timeout_ms", "0", "queue_timeout_ms"),
    ("max_queue_delay_us", "1000001", "max_queue_delay_us"),
    ("shutdown_grace_s", "-1", "shutdown_grace_s"),
    ("grpc_tls_cert", "cert.pem", "grpc_tls_key"),
    ("grpc_tls_key", "key.pem", "grpc_tls_cert"),
    ("grpc_tls_client_ca", "ca.pem", "grpc_tls_cert"),
    ("grpc_port", "8000", "grpc_port"),
    # A script's variable that is not set. Without its token file the service would let everybody in.
    *((name, "", f"{name}: it must have a value") for name in Settings.model_fields if name != "config"),
]


@pytest.mark.parametrize("way", Sources._fields)
@pytest.mark.parametrize(("name", "value", "named"), BAD)
def test_a_wrong_setting_is_told_in_one_line_by_name(
    load: Callable[[Sources], Settings], way: str, name: str, value: str, named: str
) -> None:
    sources = {
        "file": Sources(f'{name} = "{value}"'),
        "environment": Sources("", f"SERVICE_{name.upper()}={value}"),
        "command_line": Sources("", "", f"--{name.replace('_', '-')}={value}"),
    }
    with pytest.raises(StartupFault) as caught:
        load(sources[way])
    line = str(caught.value)
    assert named in line.lower().replace("-", "_")
    assert line.isprintable() and len(line) < 250


@pytest.mark.parametrize(
    ("sources", "words"),
    [
        (Sources("", "", "--http-port 0 --grpc-port 0"), "http_port and grpc_port are both off"),
        (Sources("", "", "--http-port 9 --metrics-port 9"), "two ports are the same"),
        (Sources("grpc_port = 9001", "", "--http-port 9001"), "two ports are the same"),
        (Sources("queue_timeout_ms = 100", "", "--max-queue-delay-us 100000"), "max_queue_delay_us must be less than"),
        (Sources("", "", "--config /no/such/file.toml"), "the settings file /no/such/file.toml is not there"),
        (Sources("", "", "--config /"), "the settings file / is not there"),
        (Sources("", "", "--config="), "config: it must have a value"),
        # Readable by its mode, but not by anybody.
        (Sources("", "", "--config /proc/self/mem"), "the settings file /proc/self/mem"),
        # Like a folder that the service's user may not look into, but for root, too.
        (Sources("", "", f"--config /{300 * 'x'}"), "the settings file /x"),
        (Sources("lanes ="), "service.toml is not valid TOML: "),
        (Sources("lanes = 1\nlanes = 2"), "service.toml is not valid TOML: "),
        (Sources("[http]\nport = 1"), "there is no setting 'http'"),
        (Sources('config = "base.toml"'), "service.toml cannot name another one"),
        (Sources("cache_mb = true"), "cache_mb: it is no switch, not True"),
        (Sources("", "", "--lanes"), "--lanes"),
        (Sources("", "", "--lan 3"), "--lan"),
        (Sources("", "", "lanes"), "lanes"),
    ],
)
def test_what_cannot_be_read_or_combined_is_told_in_one_line(
    load: Callable[[Sources], Settings], sources: Sources, words: str
) -> None:
    with pytest.raises(StartupFault) as caught:
        load(sources)
    assert words in str(caught.value) and str(caught.value).isprintable()


def test_none_is_a_name_as_any_other(load: Callable[[Sources], Settings]) -> None:
    """What a script in Python makes of a variable that is not set must not pass for a service without a token."""
    assert load(Sources("", "", "--access-token-file None")).access_token_file == Path("None")


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        load_settings([]).lanes = 3


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_each_deployments_file_is_valid(path: Path) -> None:
    assert load_settings(["--config", str(path)]).config == path


def test_the_systemd_unit_starts_what_there_is_and_gives_it_time_to_drain(load: Callable[[Sources], Settings]) -> None:
    unit = configparser.ConfigParser(interpolation=None)
    unit.read(UNIT)
    python, *module, arguments = unit["Service"]["ExecStart"].split(maxsplit=3)
    assert [python, *module] == [f"{INSTALLED}/.venv/bin/python", "-m", "service"]
    settings = load(Sources("", "", arguments.replace(INSTALLED, str(REPOSITORY))))
    assert settings.host == "127.0.0.1"
    assert unit["Service"]["OOMPolicy"] == "continue"
    # Each of these denies all devices that it does not name, GPUs among them; the second before systemd 253.
    assert not {"privatedevices", "protectclock", "deviceallow", "devicepolicy"} & set(unit["Service"])
    assert int(unit["Service"]["TimeoutStopSec"]) > settings.shutdown_grace_s + _DRAIN_SECONDS + END_SECONDS


@pytest.mark.parametrize("kind", ["proxy", "grpc"])
def test_the_proxy_waits_longer_than_a_request_for_its_batch_or_a_drain_takes(kind: str) -> None:
    (seconds,) = re.findall(rf"^ *{kind}_read_timeout (\d+)s;$", PROXY.read_text(), re.MULTILINE)
    assert int(seconds) > max(load_settings([]).queue_timeout_ms / 1000, _DRAIN_SECONDS) + END_SECONDS


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is missing")
def test_systemd_understands_the_unit(tmp_path: Path) -> None:
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text().replace(f"{INSTALLED}/.venv/bin/python", sys.executable))
    result = subprocess.run(
        ["systemd-analyze", "verify", copy], capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 0 and UNIT.name not in result.stderr, result.stderr
