"""A checked body comes in; requests for the engine and the beginning of an answer go out.

    {"prompt": ["Once", [0, 17]], "n": 2}
    ->  Request(ids of "Once", n=2), Request([0, 17], n=2), CompletionReply

Here a request meets the model: texts become ids, limits that depend on the server are held, and what the
engine would refuse is refused before anything is queued.
"""

import secrets
import time
from typing import NamedTuple

from scratchlm.generate.request import Request, check
from scratchlm.serve.answers import ChatReply, CompletionReply, Reply
from scratchlm.serve.errors import bad_request
from scratchlm.serve.limits import ServeConfig
from scratchlm.serve.protocol import ChatBody, CompletionBody, GenerationBody, TokenizeBody
from scratchlm.serve.worker import Served

SEED_BITS = 31
"""Of a seed that we choose: small enough to be read and given again."""


class Job(NamedTuple):
    """What a request of a client becomes."""

    model: Served
    requests: list[Request]
    reply: Reply


def completion_job(body: CompletionBody, model: Served, config: ServeConfig) -> Job:
    """Prepare a completion.

    Raises:
        ApiError: It asks for more than this server or this model does.
    """
    if len(body.prompt) > config.max_prompts:
        raise bad_request(
            f"prompt: {len(body.prompt)} at once; this server takes at most {config.max_prompts}.",
            param="prompt",
        )
    _check_limits(body, body.max_tokens, config)
    start = model.tokenizer.end_of_text_id
    prompts = [
        [start, *model.tokenizer.encode_ordinary(prompt)] if isinstance(prompt, str) else prompt
        for prompt in body.prompt
    ]
    hidden = [start] if config.begin_prompts else []
    sampling = body.sampling(max_new_tokens=body.max_tokens, seed=secrets.randbits(SEED_BITS))
    requests = [
        _checked(
            Request(
                prompt_ids=ids if ids[0] == start else [*hidden, *ids],
                sampling=sampling,
                n=body.n,
                logprobs=body.logprobs,
                echo=body.echo,
                full=body.full,
            ),
            model,
            "prompt",
        )
        for ids in prompts
    ]
    echoes = []
    if body.echo:
        echoes = [
            prompt if isinstance(prompt, str) else model.tokenizer.decode(prompt) for prompt in body.prompt
        ]
    reply = CompletionReply(body, model, prompts, echoes=echoes, **_named("cmpl"))
    return Job(model, requests, reply)


def chat_job(body: ChatBody, model: Served, config: ServeConfig) -> Job:
    """Prepare the next turn of a conversation.

    Raises:
        ApiError: It asks for more than this server or this model does, or a message is not of the form.
    """
    most = body.max_completion_tokens or body.max_tokens
    _check_limits(body, most or 0, config)
    template = model.template
    ids = [*render(body.messages, model), *body.answer_token_ids]
    sampling = body.sampling(
        max_new_tokens=most or config.max_tokens,
        seed=secrets.randbits(SEED_BITS),
        stop=tuple(template.stop_texts),
    )
    request = Request(
        prompt_ids=ids,
        sampling=sampling,
        n=body.n,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        stop_ids=tuple(template.stop_ids),
        full=body.full,
    )
    reply = ChatReply(body, model, [ids], **_named("chatcmpl"))
    for choice in reply.choices:
        choice.said = bool(body.answer_token_ids)
    return Job(model, [_checked(request, model, "messages")], reply)


def tokenize(body: TokenizeBody, model: Served) -> list[int]:
    """The ids of a text or a conversation.

    Raises:
        ApiError: A message is not of the form.
    """
    if body.messages is not None:
        return render(body.messages, model, add_generation_prompt=body.add_generation_prompt)
    text, specials = body.prompt or "", model.tokenizer.special_tokens
    if not body.add_special_tokens:
        return [specials[text]] if text in specials else model.tokenizer.encode_ordinary(text)
    return [model.tokenizer.end_of_text_id, *model.tokenizer.encode_ordinary(text)]


def render(
    messages: list[dict[str, object]], model: Served, *, add_generation_prompt: bool = True
) -> list[int]:
    """The ids of a conversation.

    Raises:
        ApiError: A message is not of the form.
    """
    try:
        return model.template.render(messages, add_generation_prompt)
    except ValueError as error:
        raise bad_request(str(error), param="messages") from None


def _check_limits(body: GenerationBody, max_tokens: int, config: ServeConfig) -> None:
    for name, value, most in (
        ("n", body.n, config.max_choices),
        ("max_tokens", max_tokens, config.max_tokens),
    ):
        if value > most:
            raise bad_request(f"{name}={value}: this server gives at most {most}.", param=name)


def _checked(request: Request, model: Served, param: str) -> Request:
    """The same request, if the model can compute it."""
    num_prompt, length = len(request.prompt_ids), model.context_length
    if num_prompt > length and request.full == "stop":
        raise bad_request(
            f"{param}: {num_prompt} tokens, and the model sees {length}; shorten it, or let the beginning be "
            "forgotten (full='slide').",
            param=param,
            code="context_length_exceeded",
        )
    try:
        check(request, vocab_size=model.vocab_size, context_length=length)
    except ValueError as error:
        raise bad_request(str(error), param=None) from None
    return request


def _named(kind: str) -> dict[str, object]:
    return {"id": f"{kind}-{secrets.token_hex(12)}", "created": int(time.time())}
