"""Nightjar's HTTP routes, on SGLang's own server: status, decisions, change of policy, and a page for people."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, Response

from sglang_nightjar.observe.control import NoAnswer
from sglang_nightjar.observe.policy_request import BadRequest, PolicyRequest
from sglang_nightjar.observe.server_side import STATUS_TIMEOUT, SWAP_TIMEOUT, NotSteered, ServerSide

MOST_DECISIONS = 1000

#: Whether the request carries the admin key: None if it does, else (HTTP status, sentence).
AdminCheck = Callable[[Request], tuple[int, str] | None]


def make_router(server: ServerSide, admin: AdminCheck) -> APIRouter:
    """The routes under ``/nightjar``. ``admin`` guards what changes the server."""
    router = APIRouter()

    @router.get("/nightjar/status")
    async def get_status() -> Response:
        return _json(await server.status())

    @router.get("/nightjar/decisions")
    async def get_decisions(request: Request) -> Response:
        given = request.query_params.get("n", "20")
        if not given.isdecimal() or not 1 <= int(given) <= MOST_DECISIONS:
            return _json({"error": f"n={given}: an integer from 1 to {MOST_DECISIONS} is allowed"}, 400)
        try:
            reply = await server.ask("decisions", {"n": int(given)}, STATUS_TIMEOUT)
        except NotSteered as error:
            return _json({"error": str(error), "decisions": []}, 409)
        except NoAnswer as error:
            return _json({"error": f"No decisions: {error}."}, 503)
        return _json(reply.body) if reply.ok else _json({"error": reply.error}, 400)

    @router.put("/nightjar/policy")
    async def put_policy(request: Request) -> Response:
        if refused := admin(request):
            code, why = refused
            return _json({"error": why}, code)
        try:
            wanted = PolicyRequest.parse(await request.body())
            reply = await server.ask("policy_set", wanted.as_args(), SWAP_TIMEOUT)
        except (BadRequest, NotSteered) as error:
            code = 400 if isinstance(error, BadRequest) else 409
            return _json({"error": str(error), "policy": await server.policy_in_charge()}, code)
        except NoAnswer as error:
            why = f"The policy was not replaced: {error}."
            return _json({"error": why, "policy": await server.policy_in_charge()}, 503)
        if not reply.ok:
            return _json({"error": reply.error, "policy": reply.body}, 400)
        return _json({"policy": reply.body})

    @router.get("/nightjar")
    async def get_page() -> Response:
        return HTMLResponse((Path(__file__).parent / "page.html").read_text())

    return router


def _json(body: dict[str, Any], code: int = 200) -> Response:
    return Response(orjson.dumps(body, option=orjson.OPT_NON_STR_KEYS), code, media_type="application/json")
