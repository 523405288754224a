"""Answers: those of the engine, in OpenAI's form, and the same as a stream and as a whole."""

import math

import pytest
from live_server import live, served

from scratchlm.generate.request import Request
from scratchlm.generate.sampling import SamplingConfig


@pytest.fixture(scope="module")
def local():
    """The server's first model once more, in this thread."""
    return served()


def ids_of(text):
    return [0, *(byte + 1 for byte in text.encode())]


def run(local, text, *, logprobs=None, echo=False, n=1, stop_ids=None, prompt_ids=None, **settings):
    sampling = SamplingConfig(**{"max_new_tokens": 16, **settings})
    request = Request(
        prompt_ids=prompt_ids or ids_of(text),
        sampling=sampling,
        logprobs=logprobs,
        echo=echo,
        n=n,
        full="stop",
        stop_ids=stop_ids,
    )
    return local.engine.run([request])[0]


def test_a_completion_is_what_the_engine_says(server, local):
    expected = run(local, "Once", seed=5, n=2)
    answer = server.complete(seed=5, n=2).json
    assert answer["object"] == "text_completion"
    assert answer["model"] == "tiny"
    assert [c["text"] for c in answer["choices"]] == [c.text for c in expected.choices]
    assert [c["finish_reason"] for c in answer["choices"]] == [c.finish_reason for c in expected.choices]
    new = sum(len(choice.tokens) for choice in expected.choices)
    assert answer["usage"] == {"prompt_tokens": 5, "completion_tokens": new, "total_tokens": 5 + new}


@pytest.mark.parametrize("path", ["completions", "chat"])
def test_a_stream_joined_together_is_the_whole_answer(server, path):
    settings = {"seed": 3, "n": 3, "logprobs": 2, "max_tokens": 12, "return_token_ids": True}
    if path == "chat":
        settings |= {"logprobs": True, "top_logprobs": 2}
    ask = server.complete if path == "completions" else server.chat
    whole = ask(**settings).json
    events = ask(**settings, stream=True, stream_options={"include_usage": True}).events
    assert events[-1]["choices"] == []
    assert events[-1]["usage"] == whole["usage"]
    assert all(event["usage"] is None for event in events[:-1])
    assert len({event["id"] for event in events}) == 1
    for choice in whole["choices"]:
        mine = [e["choices"][0] for e in events[:-1] if e["choices"][0]["index"] == choice["index"]]
        assert [part["finish_reason"] for part in mine[:-1]] == [None] * (len(mine) - 1)
        assert mine[-1]["finish_reason"] == choice["finish_reason"]
        assert [i for part in mine for i in part.get("token_ids", [])] == choice["token_ids"]
        found = [part["logprobs"] for part in mine if part["logprobs"]]
        if path == "completions":
            assert "".join(part["text"] for part in mine) == choice["text"]
            for key, value in choice["logprobs"].items():
                assert [x for part in found for x in part[key]] == value
            assert [part.get("prompt_token_ids") for part in mine[:2]] == [ids_of("Once"), None]
        else:
            assert mine[0]["delta"] == {"role": "assistant", "content": None}
            assert mine[-1]["delta"] == {}
            said = "".join(part["delta"].get("content") or "" for part in mine)
            assert said == choice["message"]["content"]
            assert [x for part in found for x in part["content"]] == choice["logprobs"]["content"]


def test_echo_and_logprobs_are_the_engines(server, local):
    expected = run(local, "Once", temperature=0, max_new_tokens=3, logprobs=4, echo=True)
    choice = server.complete(temperature=0, max_tokens=3, logprobs=4, echo=True).json["choices"][0]
    tokens = (*expected.prompt, *expected.choices[0].tokens)
    found = choice["logprobs"]
    assert choice["text"] == "Once" + expected.choices[0].text
    assert found["tokens"][:5] == ["<|endoftext|>", "O", "n", "c", "e"]
    assert found["token_logprobs"] == [token.logprob for token in tokens]
    assert found["top_logprobs"][0] is None
    for token, top in zip(tokens[1:], found["top_logprobs"][1:], strict=True):
        assert max(top.values()) == token.alternatives[0][1]
        assert len(top) in (4, 5)  # the chosen one is told, too
    assert found["text_offset"][:6] == [0, 0, 1, 2, 3, 4]


def test_scoring_a_prompt_needs_no_new_token(server):
    choice = server.complete(max_tokens=0, logprobs=1, echo=True).json["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == ("Once", "length")
    assert len(choice["logprobs"]["tokens"]) == 5
    empty = server.complete(max_tokens=0).json["choices"][0]
    assert (empty["text"], empty["finish_reason"]) == ("", "length")


def test_token_ids_are_taken_as_they_are_and_branches_go_on_from_them(server):
    whole = server.complete(temperature=0, max_tokens=8, return_token_ids=True).json["choices"][0]
    assert whole["prompt_token_ids"] == ids_of("Once")
    branch = [*whole["prompt_token_ids"], *whole["token_ids"][:5]]
    rest = server.complete(prompt=branch, temperature=0, max_tokens=3, return_token_ids=True).json["choices"][
        0
    ]
    assert whole["token_ids"][:5] + rest["token_ids"] == whole["token_ids"]


def test_ids_can_be_computed_behind_the_beginning_of_a_text_without_telling_it(server):
    asked = {"logprobs": 1, "echo": True, "max_tokens": 2, "temperature": 0, "return_token_ids": True}
    expected = server.complete(prompt="Once", **asked).json["choices"][0]
    with live(begin_prompts=True) as other:
        found = other.complete(prompt=ids_of("Once")[1:], **asked).json
        same = other.complete(prompt=ids_of("Once"), **asked).json["choices"][0]
    assert same["logprobs"]["token_ids"] == expected["logprobs"]["token_ids"]
    choice = found["choices"][0]
    assert (choice["text"], found["usage"]["prompt_tokens"]) == (expected["text"], 4)
    assert choice["prompt_token_ids"] == expected["prompt_token_ids"][1:]
    for key, value in expected["logprobs"].items():
        assert choice["logprobs"][key] == value[1:]


def test_several_prompts_have_their_choices_in_order(server):
    prompts = ["Once", "Twice", "Never"]
    together = server.complete(prompt=prompts, n=2, seed=1, echo=True).json
    assert [choice["index"] for choice in together["choices"]] == list(range(6))
    for number, prompt in enumerate(prompts):
        alone = server.complete(prompt=prompt, n=2, seed=1, echo=True).json
        mine = together["choices"][2 * number : 2 * number + 2]
        assert [c["text"] for c in mine] == [c["text"] for c in alone["choices"]]


def test_stop_texts_end_an_answer_and_are_no_part_of_it(server):
    whole = server.complete(temperature=0, max_tokens=16).json["choices"][0]["text"]
    stop = whole[6:8]
    choice = server.complete(temperature=0, max_tokens=16, stop=stop).json["choices"][0]
    assert choice["text"] == whole[: whole.index(stop)]
    assert choice["finish_reason"] == "stop"


def test_the_end_token_is_told_by_completions_alone(server):
    bias = {"logit_bias": {"0": 100}}
    completion = server.complete(**bias, logprobs=0).json["choices"][0]
    assert (completion["text"], completion["finish_reason"]) == ("", "stop")
    assert completion["logprobs"]["tokens"] == ["<|endoftext|>"]
    answer = server.chat(**bias, logprobs=True).json
    assert answer["choices"][0]["message"]["content"] == ""
    assert answer["choices"][0]["logprobs"] is None
    assert answer["usage"]["completion_tokens"] == 1


def test_the_tokens_of_an_answer_join_to_its_text(server):
    choice = server.chat(seed=2, logprobs=True, max_tokens=20).json["choices"][0]
    entries = choice["logprobs"]["content"]
    data = b"".join(bytes(entry["bytes"]) for entry in entries)
    assert data.decode("utf-8", "replace") == choice["message"]["content"]
    assert all(entry["logprob"] <= 0 and math.isfinite(entry["logprob"]) for entry in entries)


def test_without_chat_tokens_roles_are_words_and_the_next_one_ends_the_answer(server):
    about = {model["id"]: model for model in server.get("/v1/models").json["data"]}
    assert (about["tiny"]["chat_tokens"], about["plain"]["chat_tokens"]) == (True, False)
    asked = {"model": "plain", "messages": [{"role": "user", "content": "Hi"}], "return_token_strs": True}
    assert "".join(server.post("/tokenize", asked).json["token_strs"]) == "<|endoftext|>User: Hi\nAssistant:"
    forced = {str(byte + 1): 100 for byte in b" "}
    answer = server.chat(model="plain", logit_bias=forced, max_tokens=4).json["choices"][0]
    assert answer["message"]["content"] == ""  # blanks behind the label


def test_a_special_token_in_a_message_stays_text(server):
    for name in ("<|endoftext|>", "<|assistant|>", "<|end|>"):
        body = {"messages": [{"role": "user", "content": name}]}
        ids = server.post("/tokenize", body).json["tokens"]
        assert ids == [0, 257, *(byte + 1 for byte in name.encode()), 260, 258]
        ids = server.post("/tokenize", {"prompt": name}).json["tokens"]
        assert ids == ids_of(name)
        bare = {"prompt": f" {name}", "add_special_tokens": False}
        assert server.post("/tokenize", bare).json["tokens"] == ids_of(f" {name}")[1:]
    alone = {"prompt": "<|endoftext|>", "add_special_tokens": False}
    assert server.post("/tokenize", alone).json["tokens"] == [0]


def test_an_answer_goes_on_from_where_it_branches(server):
    for model in ("tiny", "plain"):
        settings = {"model": model, "temperature": 0, "max_tokens": 8, "return_token_ids": True}
        whole = server.chat(**settings).json["choices"][0]
        rest = server.chat(**settings, answer_token_ids=whole["token_ids"][:3]).json["choices"][0]
        assert rest["token_ids"][:5] == whole["token_ids"][3:8]
    assert server.chat(answer_token_ids=[999]).status == 400


def test_tokens_and_texts_turn_into_each_other(server):
    found = server.post("/tokenize", {"prompt": "né", "return_token_strs": True}).json
    assert found["tokens"] == ids_of("né")
    assert (found["count"], found["max_model_len"]) == (4, 64)
    assert found["token_strs"] == ["<|endoftext|>", "n", "bytes:\\xc3", "bytes:\\xa9"]
    bare = server.post("/tokenize", {"prompt": "né", "add_special_tokens": False}).json
    assert bare["tokens"] == ids_of("né")[1:]
    assert server.post("/detokenize", {"tokens": bare["tokens"]}).json == {"prompt": "né"}
    assert "999" in server.post("/detokenize", {"tokens": [999]}).error["message"]
    info = server.get("/tokenizer_info").json
    assert (info["eos_token"], info["vocab_size"]) == ("<|endoftext|>", 261)


def test_a_full_context_ends_the_answer_or_slides_as_asked(server):
    settings = {"prompt": "x" * 60, "max_tokens": 20, "logit_bias": {"0": -100}}
    stopped = server.complete(**settings).json
    assert stopped["choices"][0]["finish_reason"] == "length"
    assert stopped["usage"]["completion_tokens"] == 4
    assert server.complete(**settings, full="slide").json["usage"]["completion_tokens"] == 20
    long = server.complete(prompt="x" * 64)
    assert long.status == 400
    assert (long.error["code"], long.error["param"]) == ("context_length_exceeded", "prompt")
    assert "full='slide'" in long.error["message"]
    assert server.complete(prompt="x" * 64, full="slide").status == 200
    assert server.chat("x" * 80).error["param"] == "messages"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"prompt": [261]}, "there is no token 261"),
        ({"prompt": [-1]}, "there is no token -1"),
        ({"logit_bias": {"999": 1}}, "there is no token 999"),
        ({"n": 17}, "at most 16"),
        ({"max_tokens": 1_000_001}, "at most 1000000"),
        ({"prompt": ["a"] * 129}, "at most 128"),
        ({"prompt": ["a"] * 2, "n": 16}, "at most 12"),
    ],
)
def test_what_the_model_or_the_server_does_not_do_is_refused(server, body, message):
    answer = server.complete(**body)
    assert answer.status == 400
    assert message in answer.error["message"]


def test_the_model_is_chosen_by_its_name(server):
    assert server.complete(model="plain").json["model"] == "plain"
    answer = server.complete(model="big")
    assert (answer.status, answer.error["code"]) == (404, "model_not_found")
    assert server.get("/v1/models/plain").json["id"] == "plain"
    assert server.get("/v1/models/a/b").status == 404


def test_a_text_does_not_depend_on_who_is_beside_it(server):
    import concurrent.futures

    alone = [server.complete(seed=seed, max_tokens=24).json["choices"][0]["text"] for seed in range(8)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        calls = [pool.submit(server.complete, seed=seed, max_tokens=24) for seed in range(8)]
        together = [call.result().json["choices"][0]["text"] for call in calls]
    assert together == alone
