"""Talk to a running server's ``/nightjar`` routes, with errors that say what to do."""

import json
import os
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any

DEFAULT_URL = "http://127.0.0.1:30000"
URL_ENV = "NIGHTJAR_URL"
KEY_ENV = "NIGHTJAR_API_KEY"
# Longer than the server waits for its policy process.
TIMEOUT = 30.0


class ServerError(Exception):
    """The server could not be asked, or said no. The text is for people.

    Attributes:
        body: the server's JSON answer; empty if there is none.
    """

    def __init__(self, message: str, body: dict[str, Any] | None = None):
        super().__init__(message)
        self.body = body or {}


@dataclass(frozen=True)
class Client:
    """A running server at ``url``; ``key`` is its API key, or its admin key to change something."""

    url: str
    key: str | None = None

    @classmethod
    def at(cls, url: str | None, key: str | None) -> "Client":
        """What is not given is taken from the environment."""
        url = url or os.environ.get(URL_ENV) or DEFAULT_URL
        return cls(url.rstrip("/"), key or os.environ.get(KEY_ENV))

    def status(self) -> dict[str, Any]:
        """Raises ServerError."""
        return self._ask("GET", "/nightjar/status")

    def set_policy(self, body: dict[str, Any]) -> dict[str, Any]:
        """The policy now in charge. Raises ServerError, with the policy that stays in its body."""
        return self._ask("PUT", "/nightjar/policy", body)["policy"]

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        headers = {"Content-Type": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        data = None if body is None else json.dumps(body).encode()
        try:
            request = urllib.request.Request(self.url + path, data, headers, method=method)
            with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            raise _refusal(self.url, error) from None
        except (OSError, ValueError) as error:
            why = getattr(error, "reason", error)
            raise ServerError(
                f"no answer from {self.url} ({why}): is the server running? --url or {URL_ENV} names another one"
            ) from None


def _refusal(url: str, error: urllib.error.HTTPError) -> ServerError:
    try:
        body = json.loads(error.read())
    except ValueError:
        body = {}
    said = body.get("error") if isinstance(body, dict) else None
    if error.code == 404:
        return ServerError(
            f"the server at {url} has no /nightjar: start it with python -m sglang_nightjar.launch_server"
        )
    if error.code == 401 and said == "Unauthorized":
        return ServerError(f"the server at {url} wants a key: --key, or {KEY_ENV}")
    return ServerError(str(said or f"the server at {url} answered {error.code} {error.reason}"), body)
