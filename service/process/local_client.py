"""HTTP requests of the service to itself, or of another process of its machine to it.

It must not know what is asked for.
"""

import contextlib
import http.client
from collections.abc import Mapping


class LocalClient:
    """Makes a new connection for each request: none that is kept alive could hide that no new one is accepted."""

    def __init__(self, host: str, port: int, headers: Mapping[str, str] | None = None) -> None:
        """Know the address that the service listens on, and the headers that each request needs."""
        self._address = "127.0.0.1" if host == "0.0.0.0" else host, port
        self._headers = dict(headers or {})

    def get(self, path: str, seconds: float) -> tuple[int, bytes]:
        """Status and body of the answer, which may take so many seconds to begin.

        Raises:
            OSError, HTTPException: there is no answer.
        """
        return self._request("GET", path, None, {}, seconds)

    def post(
        self, path: str, body: bytes, seconds: float, headers: Mapping[str, str] | None = None
    ) -> tuple[int, bytes]:
        """The same for a request with a body."""
        return self._request("POST", path, body, headers or {}, seconds)

    def _request(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str], seconds: float
    ) -> tuple[int, bytes]:
        with contextlib.closing(http.client.HTTPConnection(*self._address, timeout=seconds)) as connection:
            connection.request(method, path, body, {**self._headers, **headers})
            response = connection.getresponse()
            return response.status, response.read()
