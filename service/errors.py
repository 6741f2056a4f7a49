"""The tree of faults and their stable codes: what can go wrong, in words a client or an operator can act on.

Comes in: nothing. Goes out: exceptions that every room may raise. It imports nothing and knows no transport;
`endpoint` alone turns a fault into a status of the protocol.
"""

from typing import ClassVar


class Fault(Exception):
    """Something that keeps one request from being answered. `str(fault)` is one line: `code: what is wrong`."""

    code: ClassVar[str]

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"

    def without_traceback(self) -> "Fault":
        """The same fault without its traceback.

        By it, a fault that is kept holds the frames that it was raised through, and they hold the fault and its whole
        batch. Such a cycle is freed by a full garbage collection only, which is rare in a process of so many objects.
        """
        return type(self)(self.message)

    def in_row(self, row: int) -> "Fault":
        """The same fault, naming the row of the request (counted from 0) that it belongs to."""
        return type(self)(f"row {row}: {self.message}")


class ClientFault(Fault):
    """The request is at fault: sending it again unchanged cannot help."""


class EmptyInput(ClientFault):
    """A row without a single byte."""

    code = "empty_input"


class InvalidBase64(ClientFault):
    """A row announced as base64 that is none."""

    code = "invalid_base64"


class UnsupportedFormat(ClientFault):
    """Bytes of no image format that is read here."""

    code = "unsupported_format"


class CorruptImage(ClientFault):
    """An image of a known format that is truncated or damaged."""

    code = "corrupt_image"


class TooManyBytes(ClientFault):
    """An encoded image over `--max-image-bytes`."""

    code = "too_many_bytes"


class TooManyPixels(ClientFault):
    """An image whose header announces more than `--max-image-pixels`."""

    code = "too_many_pixels"


class InvalidTensor(ClientFault):
    """An input tensor of another shape than the contract's, or with values that have no embedding."""

    code = "invalid_tensor"


class InvalidParameter(ClientFault):
    """A request parameter that is unknown or of the wrong type."""

    code = "invalid_parameter"


class UnknownModel(ClientFault):
    """An `embed_model` that is not served here."""

    code = "unknown_model"


class InternalFault(Fault):
    """The service is at fault: the log says why, the client does not need to know."""

    code = "internal_error"


class StartupFault(Exception):
    """The service cannot start. `str(fault)` is one line that says what to change."""


class ServiceFailure(Exception):
    """The running service cannot go on; whoever supervises this process has to start it anew."""

    @classmethod
    def of(cls, error: Exception) -> "ServiceFailure":
        """One that tells in one line of an error that nobody has foreseen."""
        return cls(" ".join(f"{type(error).__name__}: {error}".split()))
