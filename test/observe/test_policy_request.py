"""The body of PUT /nightjar/policy: what can't be meant is refused with a sentence."""

import pytest

from sglang_nightjar.observe.policy_request import BadRequest, PolicyRequest


def test_a_name_or_a_path_with_params() -> None:
    assert PolicyRequest.parse(b'{"name": "static", "params": {"gamma": 3}}').as_args() == {
        "name": "static",
        "params": {"gamma": 3},
    }
    assert PolicyRequest.parse(b'{"path": "/p.py"}').as_args() == {"path": "/p.py", "params": {}}


@pytest.mark.parametrize(
    "body, said",
    [
        (b"", "not JSON"),
        (b'{"name": "static"', "not JSON"),
        (b"[]", "must be a JSON object"),
        (b"{}", "Exactly one of name and path"),
        (b'{"name": "a", "path": "b"}', "Exactly one of name and path"),
        (b'{"name": 3}', "name must be a non-empty text"),
        (b'{"path": ""}', "path must be a non-empty text"),
        (b'{"path": "mine.py"}', "path='mine.py' must be absolute"),
        (b'{"name": "a", "params": [1]}', r"params=\[1\] must be an object"),
        (b'{"name": "a", "parms": {}}', "Unknown key 'parms'; allowed are name, path, params"),
    ],
)
def test_refusals(body: bytes, said: str) -> None:
    with pytest.raises(BadRequest, match=said):
        PolicyRequest.parse(body)
