"""OpenAI's own client, with its strict validation, finds what it expects."""

import asyncio

import openai
import pytest
from live_server import ENDLESS, live, until


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(
        base_url=f"{server.url}/v1", api_key="none", max_retries=0, _strict_response_validation=True
    ) as made:
        yield made


@pytest.fixture(scope="module")
def streaming(server):
    """Without the strict validation: it has one type for completions and their chunks, whose finish_reason
    is never null, as it is in OpenAI's own chunks."""
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as made:
        yield made


MESSAGES = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Hi"}]


def test_models(client):
    assert [model.id for model in client.models.list()] == ["tiny", "plain"]
    assert client.models.retrieve("plain").owned_by == "scratchlm"


def test_completions(client):
    answer = client.completions.create(
        model="tiny",
        prompt=["Once", "Twice"],
        n=2,
        max_tokens=6,
        seed=1,
        temperature=0.8,
        top_p=0.9,
        stop=["\n"],
        presence_penalty=0.1,
        frequency_penalty=0.1,
        logit_bias={"5": 1},
        logprobs=2,
        user="me",
        extra_body={"top_k": 50, "min_p": 0.01},
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    for choice in answer.choices:
        assert len(choice.logprobs.tokens) == len(choice.logprobs.token_logprobs) <= 6
        assert all(len(top) in (2, 3) for top in choice.logprobs.top_logprobs)
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_completions_as_a_stream(client, streaming):
    settings = {"model": "tiny", "prompt": [0, 80], "max_tokens": 8, "seed": 4}
    whole = client.completions.create(**settings)
    told = {"include_usage": True}
    chunks = list(streaming.completions.create(**settings, stream=True, stream_options=told))
    assert "".join(c.choices[0].text for c in chunks if c.choices) == whole.choices[0].text
    assert chunks[-1].usage == whole.usage


def test_conversations(client):
    answer = client.chat.completions.create(
        model="tiny", messages=MESSAGES, max_completion_tokens=8, seed=1, n=2, logprobs=True, top_logprobs=3
    )
    assert [choice.message.role for choice in answer.choices] == ["assistant", "assistant"]
    for choice in answer.choices:
        assert all(len(entry.top_logprobs) == 3 for entry in choice.logprobs.content)
    # what was said goes back as it came
    said = answer.choices[0].message.model_dump()
    more = [*MESSAGES, said, {"role": "user", "content": [{"type": "text", "text": "And?"}]}]
    assert client.chat.completions.create(model="tiny", messages=more, max_tokens=2).choices


def test_conversations_as_a_stream(client):
    settings = {"model": "tiny", "messages": MESSAGES, "max_tokens": 20, "seed": 4}
    settings["stop"] = client.chat.completions.create(**settings).choices[0].message.content[5:7]
    whole = client.chat.completions.create(**settings)
    with client.chat.completions.stream(**settings, stream_options={"include_usage": True}) as stream:
        final = stream.get_final_completion() if list(stream) else None
    assert final.choices[0].message.content == whole.choices[0].message.content
    assert final.choices[0].finish_reason == whole.choices[0].finish_reason == "stop"
    assert final.usage == whole.usage


def test_errors_have_the_classes_that_clients_expect(client, server):
    with pytest.raises(openai.NotFoundError) as found:
        client.completions.create(model="gpt-4", prompt="x")
    assert found.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as found:
        client.completions.create(model="tiny", prompt="x", n=99)
    assert (found.value.param, found.value.type) == ("n", "invalid_request_error")
    with pytest.raises(openai.BadRequestError, match="tools: not supported"):
        client.chat.completions.create(model="tiny", messages=MESSAGES, tools=[{"type": "function"}])
    image = {"type": "image_url", "image_url": {"url": f"{server.url}/health"}}
    with pytest.raises(openai.BadRequestError, match="other parts are not supported"):
        client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": [image]}])


def test_a_wrong_key_and_a_full_queue_have_their_classes():
    with live(slots=1, max_waiting=0, api_key="right") as server:
        settings = {"base_url": f"{server.url}/v1", "_strict_response_validation": True}
        with openai.OpenAI(**settings, api_key="wrong", max_retries=0) as wrong:
            with pytest.raises(openai.AuthenticationError):
                wrong.models.list()
        with openai.OpenAI(**settings, api_key="right", max_retries=0) as client:
            endless = {"messages": MESSAGES, "stream": True, "extra_body": ENDLESS}
            with client.chat.completions.create(model="tiny", **endless) as first:
                assert next(iter(first)).choices
                with pytest.raises(openai.RateLimitError) as found:
                    client.completions.create(model="tiny", prompt="x")
                assert int(found.value.response.headers["retry-after"]) >= 1
            server.idle()
            assert client.completions.create(model="tiny", prompt="x", max_tokens=1).choices


def test_an_error_inside_of_a_stream_is_raised():
    with live(answer_seconds=0.5) as server:
        settings = {"base_url": f"{server.url}/v1", "_strict_response_validation": True}
        with openai.OpenAI(**settings, api_key="none", max_retries=0) as client:
            endless = {"messages": MESSAGES, "stream": True, "extra_body": ENDLESS}
            stream = client.chat.completions.create(model="tiny", **endless)
            with pytest.raises(openai.APIError, match="no answer within"):
                list(stream)


def test_many_at_once_and_some_that_leave(server):
    async def use():
        async with openai.AsyncOpenAI(
            base_url=f"{server.url}/v1", api_key="none", max_retries=20, _strict_response_validation=True
        ) as client:

            async def whole(seed):
                answer = await client.completions.create(model="tiny", prompt="x", seed=seed, max_tokens=8)
                return answer.choices[0].text

            async def leave(seed):
                endless = {"messages": MESSAGES, "stream": True, "extra_body": ENDLESS}
                stream = await client.chat.completions.create(model="tiny", seed=seed, **endless)
                async with stream:
                    async for chunk in stream:
                        assert chunk.choices
                        return

            alone = [await whole(seed) for seed in range(6)]
            jobs = [job(seed) for seed in range(6) for job in (whole, leave)]
            found = await asyncio.gather(*jobs)
            return alone, found[::2]

    alone, together = asyncio.run(use())
    assert together == alone
    server.idle()
    until(lambda: server.metric("scratchlm_running", model="tiny") == 0)
