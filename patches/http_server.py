"""entrypoints/http_server.py, SGLang 0.5.17: Nightjar's routes on the same server.

Applied when SGLang's HTTP server is imported (see activation.py), so that a program which only uses an Engine does not
import it. The routes are added before SGLang decides on its API key middleware, so its keys guard ours too.
"""

import logging
from typing import Any

from sglang.srt.plugins.hook_registry import HookRegistry, HookType

from sglang_nightjar.patches.seams import Seam
from sglang_nightjar.supervise import policy_process

logger = logging.getLogger(__name__)

ROLES = ("http",)

_HTTP = "sglang.srt.entrypoints.http_server"
_ARGS = "sglang.srt.server_args:ServerArgs"

SEAMS = (
    Seam(
        f"{_HTTP}:_setup_and_run_http_server",
        (
            "server_args",
            "tokenizer_manager",
            "template_manager",
            "port_args",
            "scheduler_infos",
            "subprocess_watchdog",
            "execute_warmup_func",
            "launch_callback",
        ),
        "hook",
        "to add our routes before the server runs",
    ),
    Seam(f"{_HTTP}:app", None, "call", "to add our routes to"),
    Seam(
        "sglang.srt.managers.tokenizer_control_mixin:TokenizerControlMixin.get_internal_state",
        (),
        "call",
        "to ask the schedulers for their state",
    ),
    Seam(
        "sglang.srt.utils.auth:decide_request_auth",
        ("method", "path", "authorization_header", "api_key", "admin_api_key", "auth_level"),
        "call",
        "to ask for the admin key as SGLang does",
    ),
    Seam("sglang.srt.utils.auth:AuthLevel.ADMIN_FORCE", None, "field", "the same"),
    Seam("sglang.srt.utils.auth:AuthLevel.ADMIN_OPTIONAL", None, "field", "the same"),
    *(
        Seam(f"{_ARGS}.{name}", None, "field", "to know the server's keys, metrics and processes")
        for name in ("admin_api_key", "api_key", "enable_metrics", "tokenizer_worker_num")
    ),
)


def add_routes(server_args: Any, tokenizer_manager: Any, *_args: Any, **_kwargs: Any) -> None:
    setup = policy_process.current()
    if setup is None:
        return
    if server_args.tokenizer_worker_num > 1:
        logger.warning(
            "Nightjar: /nightjar is not served with tokenizer_worker_num=%d, only with 1: SGLang's HTTP workers load "
            "no plugins.",
            server_args.tokenizer_worker_num,
        )
        return
    from sglang.srt.entrypoints.http_server import app
    from sglang.srt.utils.auth import AuthLevel

    from sglang_nightjar.observe import policy_metrics
    from sglang_nightjar.observe.routes import make_router
    from sglang_nightjar.observe.server_side import ServerSide

    side = ServerSide(setup, tokenizer_manager.get_internal_state)
    if server_args.enable_metrics and setup.endpoint is not None:
        policy_metrics.export(side)
    router = make_router(side, _admin_check(server_args))
    for route in router.routes:
        if "PUT" in route.methods:  # type: ignore[attr-defined]
            # So that SGLang's middleware, where it is there, asks for the admin key and not for the user's.
            route.endpoint._auth_level = AuthLevel.ADMIN_OPTIONAL  # type: ignore[attr-defined]
    # One by one: newer FastAPI makes one route of an included router, and SGLang's middleware sees no levels in it.
    app.router.routes.extend(router.routes)


def _admin_check(server_args: Any) -> Any:
    """SGLang's own rule for endpoints that need the admin key. Its middleware would be in the way of all requests."""
    from sglang.srt.utils.auth import AuthLevel, decide_request_auth

    def check(request: Any) -> tuple[int, str] | None:
        decision = decide_request_auth(
            method=request.method,
            path=request.url.path,
            authorization_header=request.headers.get("Authorization"),
            api_key=server_args.api_key,
            admin_api_key=server_args.admin_api_key,
            auth_level=AuthLevel.ADMIN_FORCE,
        )
        if decision.allowed:
            return None
        if not server_args.admin_api_key:
            return decision.error_status_code, (
                "The policy can be changed over HTTP only on a server with an admin key: start it with --admin-api-key."
            )
        return decision.error_status_code, "The admin key is missing or wrong: send Authorization: Bearer KEY."

    return check


def apply() -> None:
    HookRegistry.register(f"{_HTTP}._setup_and_run_http_server", add_routes, HookType.BEFORE)
