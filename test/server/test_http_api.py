"""What clients use, against the running server with speculation on."""

import json

import openai
import pytest
from helpers.serving import Server

pytestmark = pytest.mark.server

QUESTION = [{"role": "user", "content": "What is the capital of France? Answer in one short sentence."}]


@pytest.fixture(scope="module")
def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=server.url + "/v1", api_key="none", timeout=300)


def test_speculation_is_on(server: Server) -> None:
    meta = server.generate("The three primary colours are", max_new_tokens=24)["meta_info"]
    assert meta["spec_verify_ct"] > 0
    assert meta["spec_num_proposed_drafts"] >= 3 * (meta["spec_verify_ct"] - 1)


def test_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="default", messages=QUESTION, temperature=0, max_tokens=40)
    assert "Paris" in answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.completion_tokens < 40


def test_chat_uses_the_template(client: openai.OpenAI, server: Server) -> None:
    """The same turn, written out by hand, gives the same text; with another system prompt it is another prompt."""
    answer = client.chat.completions.create(model="default", messages=QUESTION, temperature=0, max_tokens=20)
    system = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    by_hand = (
        f"<|im_start|>system\n{system}<|im_end|>\n"
        f"<|im_start|>user\n{QUESTION[0]['content']}<|im_end|>\n<|im_start|>assistant\n"
    )
    raw = server.generate(by_hand, max_new_tokens=20)
    assert raw["meta_info"]["prompt_tokens"] == answer.usage.prompt_tokens
    assert raw["text"].strip() == answer.choices[0].message.content.strip()
    pirate = [{"role": "system", "content": "Talk like a pirate."}, *QUESTION]
    other = client.chat.completions.create(model="default", messages=pirate, temperature=0, max_tokens=20)
    assert other.usage.prompt_tokens != answer.usage.prompt_tokens


def test_completion(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="default", prompt="The capital of France is", temperature=0, max_tokens=4)
    assert answer.choices[0].text.strip().startswith("Paris")
    assert answer.usage.completion_tokens == 4
    assert answer.choices[0].finish_reason == "length"


def test_completion_of_several_prompts_and_choices(client: openai.OpenAI) -> None:
    prompts = ["The capital of France is", "One, two, three,"]
    answer = client.completions.create(model="default", prompt=prompts, n=3, temperature=0.9, max_tokens=8)
    assert [choice.index for choice in answer.choices] == list(range(6))
    assert len({choice.text for choice in answer.choices}) > 2


def test_streamed_chat_is_the_whole_answer(client: openai.OpenAI) -> None:
    asked = {"model": "default", "messages": QUESTION, "temperature": 0, "max_tokens": 30}
    whole = client.chat.completions.create(**asked).choices[0].message.content
    chunks = [
        chunk.choices[0].delta.content
        for chunk in client.chat.completions.create(**asked, stream=True)
        if chunk.choices and chunk.choices[0].delta.content
    ]
    assert "".join(chunks) == whole
    assert len(chunks) > 1


def test_streamed_generate_grows(server: Server) -> None:
    import requests

    body = {"text": "Once upon a time", "sampling_params": {"temperature": 0, "max_new_tokens": 24}, "stream": True}
    texts = []
    with requests.post(server.url + "/generate", json=body, stream=True, timeout=300) as response:
        for line in response.iter_lines():
            if line.startswith(b"data: {"):
                texts.append(json.loads(line[6:])["text"])
    assert len(texts) > 1
    assert all(later.startswith(earlier) for earlier, later in zip(texts, texts[1:], strict=False))
    assert texts[-1] == server.generate("Once upon a time", max_new_tokens=24)["text"]


def test_stop_string(client: openai.OpenAI) -> None:
    prompt = "Count: one, two, three, four, five, six, seven,"
    free = client.completions.create(model="default", prompt=prompt, temperature=0, max_tokens=24).choices[0]
    words = free.text.split(", ")
    assert len(words) > 3, free.text
    stopped = client.completions.create(
        model="default", prompt=prompt, temperature=0, max_tokens=24, stop=[words[2]]
    ).choices[0]
    assert stopped.finish_reason == "stop"
    assert stopped.text == free.text[: free.text.index(words[2])]


def test_json_schema(client: openai.OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {
            "city": {"type": "string", "maxLength": 20},
            "population": {"type": "integer"},
            "capital": {"type": "boolean"},
        },
        "required": ["city", "population", "capital"],
        "additionalProperties": False,
    }
    answer = client.chat.completions.create(
        model="default",
        messages=[{"role": "user", "content": "Describe Paris as JSON."}],
        temperature=0,
        max_tokens=80,
        response_format={"type": "json_schema", "json_schema": {"name": "city", "schema": schema}},
    )
    found = json.loads(answer.choices[0].message.content)
    assert found.keys() == schema["properties"].keys()
    assert isinstance(found["population"], int)
    assert isinstance(found["capital"], bool)


def test_regex(server: Server) -> None:
    text = server.generate("A date:", max_new_tokens=16, regex=r"20[0-9]{2}-[01][0-9]-[0-3][0-9]")["text"]
    assert len(text) == 10
    assert text[4] == text[7] == "-"


def test_radix_cache_is_used(server: Server) -> None:
    text = "The quick brown fox jumps over the lazy dog, and the dog does not mind in the least. " * 4
    first = server.generate(text + "First", max_new_tokens=2)["meta_info"]
    second = server.generate(text + "Second", max_new_tokens=2)["meta_info"]
    assert second["cached_tokens"] > 60
    assert second["cached_tokens"] > first["cached_tokens"]


def test_a_cached_prefix_does_not_change_the_text(server: Server) -> None:
    text = "A list of the months of the year, in order, is: January, February,"
    fresh = server.generate(text, max_new_tokens=24)
    again = server.generate(text, max_new_tokens=24)
    assert again["meta_info"]["cached_tokens"] > fresh["meta_info"]["cached_tokens"]
    assert again["output_ids"] == fresh["output_ids"]


def test_logprobs_of_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="default", messages=QUESTION, temperature=0, max_tokens=8, logprobs=True, top_logprobs=3
    )
    content = answer.choices[0].logprobs.content
    assert len(content) == answer.usage.completion_tokens
    for token in content:
        assert token.logprob <= 0
        # Greedy: the chosen token is the most likely one.
        assert token.logprob == max(other.logprob for other in token.top_logprobs)


def test_models_and_info(client: openai.OpenAI, server: Server) -> None:
    assert len(client.models.list().data) == 1
    info = server.get("/server_info")
    assert info["speculative_algorithm"] == "EAGLE3"
    assert info["disable_radix_cache"] is False
