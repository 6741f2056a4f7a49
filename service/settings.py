"""Every setting once: its name, type, default and meaning.

Comes in: a TOML file, the environment (`SERVICE_...`) and the command line, the later winning. Goes out: one frozen
`Settings`. It must not know what the settings do.
"""

import argparse
import contextlib
import os
import re
from collections.abc import Sequence
from ipaddress import IPv4Address
from pathlib import Path
from typing import Annotated, Any, Literal

from PIL import ImageColor
from pydantic import AfterValidator, Field, ValidationError, ValidationInfo, field_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

from service.errors import StartupFault

_PREFIX = "SERVICE_"
# Pillow refuses larger images by itself.
_PILLOW_MAX_PIXELS = 178_956_970
# torch takes no leading zero, and reads what is over 127 as another number.
_INDEX = r":(0|[1-9][0-9]?)"
# The largest number that Triton's configuration holds.
_INT32 = 2**31 - 1

Port = Annotated[int, Field(ge=0, le=65535)]


def _background(value: str) -> str:
    try:
        if value != "none":
            ImageColor.getrgb(value)
        return value
    except ValueError as error:
        raise ValueError("it must be none, the name of a colour, or #rrggbb") from error


def _device(value: str) -> str:
    if not re.fullmatch(rf"auto|cpu|cuda({_INDEX})?(,cuda{_INDEX})*", value):
        raise ValueError("it must be auto, cpu, cuda, or a list such as cuda:0,cuda:1")
    return value


def _ipv4_address(value: str) -> str:
    """Triton resolves no name: it would listen on an address that nobody reaches."""
    try:
        return str(IPv4Address(value))
    except ValueError as error:
        raise ValueError("it must be an IPv4 address such as 127.0.0.1") from error


def _model_alias(value: str) -> str:
    if not re.fullmatch(r"\w[\w.-]*", value, re.ASCII):
        raise ValueError("it must be of letters, digits and ._-, and begin with none of .-")
    if value.lower() in ("embed_image", "draining"):
        raise ValueError("this name is taken by the service itself")
    return value


class Settings(BaseSettings):
    """Turn images into SigLIP embeddings, over the KServe v2 protocol.

    Each setting can also stand in the TOML file (lanes = 2) and in the environment (SERVICE_LANES=2). The command line
    wins over the environment, the environment over the file.

    Beside it: python -m service fetch brings a checkpoint from the model hub, python -m service.client embeds many
    images, python -m service.bulk does so without a server, python -m service.probe tells whether a service is able.
    """

    model_config = SettingsConfigDict(
        env_prefix=_PREFIX,
        frozen=True,
        extra="forbid",
        cli_prog_name="python -m service",
        cli_kebab_case=True,
        cli_hide_none_type=True,
        cli_avoid_json=True,
        cli_parse_none_str="(none)",  # how the help shows no value; by default it is None, also as an argument
        cli_exit_on_error=False,
    )

    config: Path | None = Field(None, description="TOML file with settings")
    checkpoint: str = Field("demo", description="hub id or folder of a SigLIP checkpoint; 'demo' is the embedded one")
    revision: str | None = Field(None, description="branch, tag or commit of the checkpoint on the hub")
    random_weights: bool = Field(
        False, description="seeded random weights for a checkpoint that is a bare configuration; for load tests only"
    )
    model_alias: Annotated[str, AfterValidator(_model_alias)] = Field(
        "siglip",
        description="name of the served model: the one value of the parameter embed_model, and the PIXEL_VALUES model",
    )
    device: Annotated[str, AfterValidator(_device)] = Field(
        "auto", description="cpu, cuda (the first GPU), auto (that, or else cpu), or a list such as cuda:0,cuda:1"
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description=(
            "what the model computes in; auto is bfloat16 where the device has units for it, else float16 on CUDA,"
            " float32 on a CPU"
        ),
    )
    host: Annotated[str, AfterValidator(_ipv4_address)] = Field(
        "127.0.0.1", description="IPv4 address that all ports listen on; 0.0.0.0 for all interfaces"
    )
    http_port: Port = Field(8000, description="HTTP port; 0 switches it off")
    grpc_port: Port = Field(8001, description="gRPC port; 0 switches it off")
    metrics_port: Port = Field(8002, description="Prometheus metrics port; 0 switches it off")
    max_batch_size: int = Field(60, ge=1, le=4096, description="most images in a batch, and rows in a request")
    max_queue_delay_us: int = Field(
        0, ge=0, le=1_000_000, description="microseconds that a request waits for others to fill its batch"
    )
    max_queue_size: int = Field(
        1024, ge=1, le=_INT32, description="most requests that wait for a batch; what is over it is refused with 503"
    )
    queue_timeout_ms: int = Field(
        60_000, ge=1, le=86_400_000, description="milliseconds that a request waits for a batch before it gets a 503"
    )
    lanes: int = Field(
        0,
        ge=0,
        le=16,
        description="batches in the works at a time on each device; 0 is 2 on CUDA, cores + 1 but at most 8 on a CPU",
    )
    cpu_threads: int = Field(
        0, ge=0, le=1024, description="threads that decode, and on a CPU encode; 0 is one a core that it may use"
    )
    exact_pixels: bool = Field(False, description="decode and resize with Pillow exactly as the reference does; slower")
    max_image_bytes: int = Field(32 * 2**20, ge=1, le=_INT32, description="largest encoded image in bytes")
    max_image_pixels: int = Field(
        50_000_000, ge=1, le=_PILLOW_MAX_PIXELS, description="largest image in pixels, read from its header"
    )
    cache_mb: int = Field(
        0, ge=0, description="MiB of embeddings to remember, so that repeated images are not encoded again; 0 is off"
    )
    default_base64_encoded: bool = Field(False, description="value of base64_encoded for requests that do not say")
    default_normalize: bool = Field(False, description="value of normalize for requests that do not say")
    exif_orientation: bool = Field(True, description="turn images as their EXIF orientation says")
    background: Annotated[str, AfterValidator(_background)] = Field(
        "white", description="colour behind transparent images (a name or #rrggbb); none drops the alpha channel"
    )
    shutdown_grace_s: float = Field(
        0.0, ge=0, le=3600, description="seconds between not looking ready and taking no more requests, at the end"
    )
    access_token_file: Path | None = Field(
        None, description="file with the token that inference, statistics and metrics are then behind"
    )
    admin_token_file: Path | None = Field(
        None, description="file with a token that opens the endpoints that steer the server, which are closed without"
    )
    grpc_tls_cert: Path | None = Field(None, description="PEM file of a certificate; gRPC is then spoken in TLS only")
    grpc_tls_key: Path | None = Field(None, description="PEM file of the certificate's unencrypted key")
    grpc_tls_client_ca: Path | None = Field(
        None, description="PEM file of authorities; a gRPC client then needs a certificate of theirs"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least level that is logged")
    log_format: Literal["text", "json"] = Field("text", description="one line an event, as text or as JSON")

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_what_says_nothing(cls, value: Any, info: ValidationInfo) -> Any:
        """A script's variable that is not set: without its token file, say, the service would let everybody in.

        Nor is a file's true a number: pydantic makes 1 of it, and `cache_mb = true` would be next to no cache.
        """
        if value == "":
            raise ValueError("it must have a value, or be left out for its default")
        if isinstance(value, bool) and cls.model_fields[info.field_name or ""].annotation is not bool:
            raise ValueError("it is no switch")
        return value

    @property
    def background_rgb(self) -> tuple[int, int, int] | None:
        """The background as RGB in 0..255, None where the alpha channel is dropped."""
        return None if self.background == "none" else ImageColor.getrgb(self.background)[:3]

    @property
    def ports(self) -> dict[str, int]:
        """The ports that are switched on, by the name of their setting."""
        ports = {"http_port": self.http_port, "grpc_port": self.grpc_port, "metrics_port": self.metrics_port}
        return {name: port for name, port in ports.items() if port}

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment wins over what the file holds; the command line, added by pydantic, wins over both."""
        return env_settings, init_settings


def load_settings(arguments: Sequence[str]) -> Settings:
    """Settings from the command line `arguments`, the environment, and the file that `config` names in one of these.

    Raises:
        StartupFault: an unknown setting, a bad value, or a file that cannot be read.
        SystemExit: `--help` was asked for and printed.
    """
    _refuse_unknown_variables()
    try:
        command_line: dict[str, Any] = {"_cli_parse_args": list(arguments)}
        settings = Settings(**command_line)
        if settings.config is not None:
            settings = Settings(**command_line, **_read_file(settings.config))
        _refuse_contradictions(settings)
        return settings
    except SettingsError as error:
        raise StartupFault(str(error).removeprefix("error parsing CLI: ")) from error
    except ValidationError as error:
        raise StartupFault(_describe(error)) from error


def readable_log_format(arguments: Sequence[str]) -> str:
    """`json` where the sources that can be read ask for it, to tell the fault of the others with; else `text`."""
    variables = {name.upper(): value for name, value in os.environ.items()}
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("config", "log_format"):
        option = f"--{name.replace('_', '-')}"
        parser.add_argument(option, nargs="?", default=variables.get(f"{_PREFIX}{name.upper()}"))
    given, _ = parser.parse_known_args(arguments)
    with contextlib.suppress(StartupFault):
        given.log_format = given.log_format or (given.config and _read_file(Path(given.config)).get("log_format"))
    return "json" if given.log_format == "json" else "text"


def _read_file(path: Path) -> dict[str, Any]:
    try:
        if not path.is_file():
            raise StartupFault(f"the settings file {path} is not there")
        settings = TomlConfigSettingsSource(Settings, path)()
    except OSError as error:
        raise StartupFault(f"the settings file {path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise StartupFault(f"the settings file {path} is not valid TOML: {error}") from error
    if "config" in settings:  # what it has, a token file say, would be missing without a word
        raise StartupFault(f"config: the settings file {path} cannot name another one")
    return settings


def _refuse_contradictions(settings: Settings) -> None:
    if not (settings.http_port or settings.grpc_port):
        raise StartupFault("http_port and grpc_port are both off: nobody could reach the service")
    if len(set(settings.ports.values())) < len(settings.ports):
        raise StartupFault(f"two ports are the same: {settings.ports}")
    if (settings.grpc_tls_cert is None) != (settings.grpc_tls_key is None):
        raise StartupFault("grpc_tls_cert and grpc_tls_key are given together or not at all")
    if settings.grpc_tls_client_ca and not settings.grpc_tls_cert:
        raise StartupFault("grpc_tls_client_ca needs grpc_tls_cert and grpc_tls_key")
    if settings.max_queue_delay_us >= 1000 * settings.queue_timeout_ms:
        raise StartupFault("max_queue_delay_us must be less than queue_timeout_ms, or requests wait for their end")


def _refuse_unknown_variables() -> None:
    known = {f"{_PREFIX}{name}".upper() for name in Settings.model_fields}
    ours = (name for name in os.environ if name.upper().startswith(_PREFIX))
    unknown = sorted(name for name in ours if name.upper() not in known)
    if unknown:
        raise StartupFault(f"there is no setting for the environment variable {unknown[0]}; see --help")


def _describe(error: ValidationError) -> str:
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"there is no setting {name!r}; see --help"
    return f"{name}: {first['msg'].removeprefix('Value error, ')}, not {first['input']!r}"
