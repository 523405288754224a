"""What clients send: unknown and wrong fields are refused with their names, whatever the bytes are."""

import pytest

from scratchlm.serve.errors import ApiError
from scratchlm.serve.protocol import (
    ChatBody,
    CompletionBody,
    DetokenizeBody,
    TokenizeBody,
    parse,
)

USER = b'{"role":"user","content":"Hi"}'


def refused(kind, data):
    with pytest.raises(ApiError) as found:
        parse(kind, data)
    assert found.value.status == 400
    error = found.value.body["error"]
    assert error["type"] == "invalid_request_error"
    return error


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no valid JSON"),
        (b"{", "no valid JSON"),
        (b'{"prompt": "\xff"}', "no valid JSON"),
        (b'{"prompt": "\\ud800"}', "no valid JSON"),
        (b'{"prompt": NaN}', "no valid JSON"),
        (b"[" * 10_000, "recursion limit"),
        (b'{"prompt":' * 10_000, "recursion limit"),
        (b"9" * 5000, "out of range"),
        (b"[]", "must be a JSON object"),
        (b'"x"', "must be a JSON object"),
    ],
)
def test_what_is_no_json_object_is_refused(data, message):
    assert message in refused(CompletionBody, data)["message"]


@pytest.mark.parametrize(
    ("more", "param", "message"),
    [
        (b'"temprature": 1', "temprature", "Did you mean 'temperature'?"),
        (b'"tools": []', "tools", "not supported"),
        (b'"suffix": "x"', "suffix", "not supported"),
        (b'"n": 0', "n", "greater than or equal to 1"),
        (b'"n": "2"', "n", "valid integer"),
        (b'"n": true', "n", "valid integer"),
        (b'"temperature": 2.5', "temperature", "less than or equal to 2"),
        (b'"temperature": 1e999', "temperature", "less than or equal to 2"),
        (b'"top_p": 0', "top_p", "greater than 0"),
        (b'"max_tokens": -1', "max_tokens", "greater than or equal to 0"),
        (b'"logprobs": 21', "logprobs", "less than or equal to 20"),
        (b'"seed": 1' + b"0" * 30, "seed", "less than"),
        (b'"stop": [' + b'"a",' * 16 + b'"a"]', "stop", "at most 16"),
        (b'"stop": [""]', "stop", "1 to 256 characters"),
        (b'"stop": "' + b"x" * 257 + b'"', "stop", "1 to 256 characters"),
        (b'"stop": [1]', "stop.0", "valid string"),
        (b'"logit_bias": {"a": 1}', "logit_bias", "no token id"),
        (b'"logit_bias": {"1": 101}', "logit_bias", "from -100 to 100"),
        (b'"logit_bias": [1]', "logit_bias", "valid dictionary"),
        (b'"stream_options": {"include_usage": true}', "stream_options", "only with stream=true"),
        (b'"stream": true, "stream_options": {"x": 1}', "stream_options.x", "unknown parameter"),
        (b'"{name}": 1', "{name}", "unknown parameter"),
        (b'"full": "round"', "full", "'stop' or 'slide'"),
        (b'"user": 3', "user", "valid string"),
    ],
)
def test_a_wrong_field_is_named(more, param, message):
    error = refused(CompletionBody, b'{"prompt": "x", ' + more + b"}")
    assert error["param"] == param
    assert message in error["message"]


@pytest.mark.parametrize(
    "prompt",
    [b"[]", b"[[]]", b"3", b"{}", b"[1, true]", b'["a", 1]', b"[[1], []]", b'[[1], ["a"]]', b"[1.5]"],
)
def test_prompts_of_no_known_form_are_refused(prompt):
    error = refused(CompletionBody, b'{"prompt": ' + prompt + b"}")
    assert error["param"] == "prompt"
    assert "token ids" in error["message"]


def test_a_missing_field_is_named():
    assert refused(CompletionBody, b"{}")["message"] == "prompt: missing; it must be given."
    assert refused(ChatBody, b"{}")["param"] == "messages"
    assert refused(DetokenizeBody, b"{}")["param"] == "tokens"
    assert refused(TokenizeBody, b"{}")["message"] == "prompt: give either prompt or messages."


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        (b'"a"', ["a"]),
        (b'["a", "b"]', ["a", "b"]),
        (b"[1, 2]", [[1, 2]]),
        (b"[[1], [2, 3]]", [[1], [2, 3]]),
        (b'""', [""]),
    ],
)
def test_every_form_of_a_prompt_becomes_a_list(prompt, expected):
    assert parse(CompletionBody, b'{"prompt": ' + prompt + b"}").prompt == expected


def test_of_a_million_mistakes_the_first_is_told():
    """Explaining all of them took a server's only loop 20 seconds."""
    assert "at most 2048" in refused(ChatBody, b'{"messages": [' + b"{}," * 2048 + b"{}]}")["message"]
    assert refused(DetokenizeBody, b'{"tokens": [' + b'"a",' * 100_000 + b"3]}")["param"] == "tokens.0"
    names = b",".join(b'"k%d": 1' % number for number in range(10_000))
    assert refused(CompletionBody, b"{" + names + b"}")["param"] == "k0"
    nested = b'{"prompt": "x", "stream": true, "stream_options": {' + names + b"}}"
    assert refused(CompletionBody, nested)["param"] == "stream_options.k0"


def test_null_means_not_given_also_for_what_is_not_supported():
    body = parse(CompletionBody, b'{"prompt": "x", "n": null, "stop": null, "suffix": null, "best_of": null}')
    assert (body.n, body.stop) == (1, [])


def test_settings_reach_the_sampler():
    data = (
        b'{"prompt": "x", "temperature": 0, "top_k": 0, "top_p": 1, "stop": "END", "logit_bias": {"5": -1}}'
    )
    sampling = parse(CompletionBody, data).sampling(max_new_tokens=3, seed=11, stop=("User:",))
    assert (sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p) == (0, None, None, None)
    assert (sampling.stop, sampling.logit_bias) == (("END", "User:"), {5: -1})
    assert (sampling.max_new_tokens, sampling.seed) == (3, 11)
    assert parse(CompletionBody, b'{"prompt": "x", "seed": 0}').sampling(max_new_tokens=1, seed=9).seed == 0


def test_contents_in_parts_are_joined_and_developers_are_the_system():
    data = b"""{"messages": [{"role": "developer", "content": "Be short.", "name": null},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]}"""
    assert parse(ChatBody, data).messages == [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "ab"},
    ]


@pytest.mark.parametrize(
    "part",
    [
        b'{"type": "image_url", "image_url": {"url": "http://127.0.0.1/"}}',
        b'{"type": "text", "text": 3}',
        b'{"type": "text", "text": "a", "url": "file:///etc/passwd"}',
        b'"a"',
    ],
)
def test_other_parts_of_a_message_are_refused(part):
    error = refused(ChatBody, b'{"messages": [{"role": "user", "content": [' + part + b"]}]}")
    assert "must be" in error["message"]


@pytest.mark.parametrize(
    ("more", "param"),
    [
        (b'"top_logprobs": 2', "top_logprobs"),
        (b'"max_tokens": 1, "max_completion_tokens": 1', "max_tokens"),
        (b'"max_tokens": 0', "max_tokens"),
        (b'"logprobs": 1', "logprobs"),
        (b'"answer_token_ids": [1, "a", "b"]', "answer_token_ids.1"),
        (b'"response_format": {"type": "json_object"}', "response_format"),
    ],
)
def test_a_wrong_field_of_a_conversation_is_named(more, param):
    assert refused(ChatBody, b'{"messages": [' + USER + b"], " + more + b"}")["param"] == param
